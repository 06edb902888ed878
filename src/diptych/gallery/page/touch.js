// The renderer listens to the mouse only: one finger becomes its mouse, two fingers its wheel.

export function makeTouchable(canvas) {
  const fingers = new Map();
  let spread = 0;
  let moved = false;
  const mouse = (kind, event, buttons) =>
    canvas.dispatchEvent(
      new MouseEvent(kind, { clientX: event.clientX, clientY: event.clientY, buttons, bubbles: true, cancelable: true }),
    );
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
    moved = fingers.size > 1;
    if (fingers.size === 1) {
      mouse("mouseenter", event, 0);
      mouse("mousemove", event, 0);
      mouse("mousedown", event, 1);
    } else {
      mouse("mouseup", event, 0);
      spread = distance(fingers);
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = fingers.get(event.pointerId);
    moved ||= Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY) > 4;
    fingers.set(event.pointerId, event);
    if (fingers.size === 1) {
      mouse("mousemove", event, 1);
      return;
    }
    const now = distance(fingers);
    pinch(canvas, fingers, spread - now);
    spread = now;
  });
  for (const kind of ["pointerup", "pointercancel"])
    canvas.addEventListener(kind, (event) => {
      if (!fingers.delete(event.pointerId)) return;
      mouse("mouseup", event, 0);
      if (!moved && kind === "pointerup") mouse("click", event, 0);
    });
  // Else the browser sends mouse events of its own after the touch.
  canvas.addEventListener("touchend", (event) => event.preventDefault(), { passive: false });
}

function distance(fingers) {
  const [one, other] = [...fingers.values()];
  return Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
}

function pinch(canvas, fingers, deltaY) {
  const [one, other] = [...fingers.values()];
  const clientX = (one.clientX + other.clientX) / 2;
  const clientY = (one.clientY + other.clientY) / 2;
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 2 * deltaY, clientX, clientY, bubbles: true, cancelable: true }));
}
