"use strict";
(() => {
  const films = JSON.parse(document.getElementById("films").textContent);
  const at = (id) => document.getElementById(id);
  const task = at("film-task"), seed = at("film-seed"), sides = ["a", "b"];
  const video = (side) => at("film-" + side), choice = (side) => at("film-sampler-" + side);

  function fill(select, values) {
    const before = select.value;
    select.replaceChildren(...values.map((value) => new Option(value, value)));
    if (values.includes(before)) select.value = before;
  }
  const samplers = () => Object.keys(films[task.value]);
  function seeds() {
    const [a, b] = sides.map((side) => films[task.value][choice(side).value] || {});
    const both = Object.keys(a).filter((s) => s in b);
    return both.length ? both : Object.keys(a);
  }
  function show() {
    for (const side of sides) {
      const film = (films[task.value][choice(side).value] || {})[seed.value];
      video(side).pause();
      if (film) video(side).src = film.src; else video(side).removeAttribute("src");
      at("film-text-" + side).textContent = choice(side).value + ": " + (film ? film.text : "no video of this seed");
      video(side).setAttribute("aria-label", "Episode of " + choice(side).value + ", seed " + seed.value);
    }
    at("film-play").textContent = "Play both";
  }
  function pickTask() {
    const names = samplers();
    for (const side of sides) fill(choice(side), names);
    choice("b").value = names[names.length - 1];
    at("films-pair").classList.toggle("one", names.length < 2);
    at("film-side-b").hidden = names.length < 2;
    pickSampler();
  }
  function pickSampler() { fill(seed, seeds()); show(); }

  task.addEventListener("change", pickTask);
  sides.forEach((side) => choice(side).addEventListener("change", pickSampler));
  seed.addEventListener("change", show);
  at("film-play").addEventListener("click", () => {
    const both = sides.map(video).filter((v) => v.hasAttribute("src"));
    if (both.some((v) => !v.paused)) {
      both.forEach((v) => v.pause());
      at("film-play").textContent = "Play both";
      return;
    }
    if (both.every((v) => v.ended || v.currentTime === 0)) both.forEach((v) => { v.currentTime = 0; });
    both.forEach((v) => {
      v.playbackRate = Number(at("film-speed").value);
      if (!v.ended) v.play().catch((error) => { at("film-text-a").textContent = "cannot play: " + error.message; });
    });
    at("film-play").textContent = "Pause both";
  });
  at("film-speed").addEventListener("change", () => sides.forEach((side) => {
    video(side).playbackRate = Number(at("film-speed").value);
  }));
  sides.forEach((side) => video(side).addEventListener("ended", () => {
    if (sides.map(video).every((v) => v.ended || !v.hasAttribute("src"))) at("film-play").textContent = "Play both";
  }));
  fill(task, Object.keys(films));
  pickTask();
})();
