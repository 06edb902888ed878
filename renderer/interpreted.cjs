const Sval = require("sval").default ?? require("sval");

module.exports = (parts) => {
  const text = parts[parts.length - 1];
  const names = parts.slice(0, -1);
  const interpreter = new Sval({ ecmaVer: 5, sandBox: true });
  interpreter.run(`exports.made = function(${names}) {${text}}`);
  return interpreter.exports.made;
};
