export { default, createRenderer, createSpatialIndex } from "regl-scatterplot";
