"use strict";
// Moves the items of each belt through its stages; the times are those of the run file.
(() => {
  const belts = JSON.parse(document.getElementById("belt-data").textContent);
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const colours = ["#2f6fb7", "#b9571d", "#217d4c", "#8247b5", "#b8374a", "#1d7f8c"];
  const SECONDS = 24; // of the whole belt at speed 1

  for (const root of document.querySelectorAll(".belt")) {
    const belt = belts[Number(root.dataset.belt)];
    const lanes = [...root.querySelectorAll(".lane")];
    const button = root.querySelector(".play");
    const slider = root.querySelector(".at");
    const speed = root.querySelector(".speed");
    const output = root.querySelector("output");
    const first = Math.min(...belt.items.map((item) => item.times[0]));
    const last = Math.max(...belt.items.map((item) => item.times[item.times.length - 1]));
    const dots = belt.items.map((item, number) => {
      const dot = document.createElement("span");
      dot.className = "dot";
      dot.style.background = colours[number % colours.length];
      dot.textContent = number < 100 ? String(number) : "";
      return dot;
    });
    let now = first;
    let playing = false;
    let before = 0;

    function show() {
      const here = [];
      belt.items.forEach((item, number) => {
        const times = item.times;
        const dot = dots[number];
        if (now < times[0] || now >= times[times.length - 1]) {
          dot.remove();
          return;
        }
        let stage = 0;
        while (now >= times[stage + 1]) stage += 1;
        const share = (now - times[stage]) / (times[stage + 1] - times[stage]);
        if (dot.parentNode !== lanes[stage]) lanes[stage].append(dot);
        dot.style.left = `${100 * share}%`;
        here.push(`${number} “${item.label}” in ${belt.stages[stage]}`);
      });
      const shown = belt.unit === "cycles"
        ? `cycle ${Math.floor(now).toLocaleString("en")}`
        : `${(1e6 * now / belt.per_second).toFixed(3)} µs`;
      const some = here.slice(0, 2).join("; ") + (here.length > 2 ? `; ${here.length - 2} more` : "");
      output.textContent = `${shown}: ${some || "nothing under way"}`;
      slider.value = String(Math.round(1000 * (now - first) / Math.max(last - first, 1)));
      slider.setAttribute("aria-valuetext", shown);
    }

    function frame(time) {
      if (!playing) return;
      const passed = Math.min(time - before, 100) / 1000;
      before = time;
      now += passed * Number(speed.value) * (last - first) / SECONDS;
      if (now >= last) now = first;
      show();
      requestAnimationFrame(frame);
    }

    function play(on) {
      playing = on;
      button.textContent = on ? "Pause" : "Play";
      if (on) {
        before = performance.now();
        requestAnimationFrame(frame);
      }
    }

    button.addEventListener("click", () => play(!playing));
    slider.addEventListener("input", () => {
      play(false);
      now = Math.min(first + Number(slider.value) / 1000 * (last - first), last - 1);
      show();
    });
    still.addEventListener("change", () => { if (still.matches) play(false); });
    // An output is a live region: while the belt runs by itself it should not talk.
    output.setAttribute("aria-live", "off");
    show();
    if (!still.matches) play(true);
  }
})();
