// One clock for all: every video, token map and plot cursor follows the first video.
(() => {
  const root = document.documentElement;
  root.classList.remove("no-script");
  const page = JSON.parse(document.getElementById("page").textContent);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);

  const clock = page.frames > 1 ? one("[data-levels='0']") : null;
  const half = 0.5 / page.fps;
  let playing = true, before = -1;

  const stage = one(".stage"), under = one(".stage .under"), over = one(".stage .over");
  const choose = (levels) => {
    under.src = one(`[data-levels="${levels}"]`).src;
    one(".stage .tag.right").textContent = levels === 1 ? "level 1" : `levels 1 to ${levels}`;
    all(".choice button").forEach((b) => b.setAttribute("aria-pressed", String(Number(b.value) === levels)));
    if (clock) follow(under, true);
  };
  all(".choice button").forEach((b) => b.addEventListener("click", () => choose(Number(b.value))));
  const wipe = (event) => {
    const box = stage.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    stage.style.setProperty("--wipe", `${(100 * share).toFixed(2)}%`);
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); wipe(event); });
  stage.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse" || event.buttons) wipe(event); });

  over.src = one("[data-levels='0']").src;
  choose(page.levels);
  if (!clock) return;

  const videos = all("video.media"), play = one(".play"), seek = one(".seek"), shown = one(".controls output");
  function follow(video, now) {
    if (video === clock) return;
    if (now || Math.abs(video.currentTime - clock.currentTime) > 2 * half) video.currentTime = clock.currentTime;
    if (playing && video.paused) video.play().catch(() => {});
    if (!playing && !video.paused) video.pause();
  }
  function show(frame) {
    if (frame === before) return;
    before = frame;
    seek.value = frame;
    shown.textContent = `frame ${frame + 1} of ${page.frames}`;
    for (const map of all(".map")) {
      const stride = Number(map.dataset.stride);
      map.style.setProperty("--step", frame === 0 ? 0 : Math.ceil(frame / stride));
    }
    for (const line of all(".cursor")) {
      const x0 = Number(line.dataset.x0), x1 = Number(line.dataset.x1);
      const x = x0 + (x1 - x0) * frame / Math.max(1, page.frames - 1);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
  }
  function tick() {
    show(Math.min(page.frames - 1, Math.floor(clock.currentTime * page.fps + 0.01)));
    if (playing) videos.forEach((video) => follow(video, false));
    requestAnimationFrame(tick);
  }
  function set(running) {
    playing = running;
    play.textContent = running ? "Pause" : "Play";
    if (running) clock.play().catch(() => set(false)); else clock.pause();
    videos.forEach((video) => follow(video, !running));
  }
  function jump(frame) {
    clock.currentTime = (frame + 0.5) / page.fps;
    videos.forEach((video) => follow(video, true));
  }
  videos.forEach((video) => { video.loop = false; video.muted = true; });
  clock.addEventListener("ended", () => { clock.currentTime = 0; videos.forEach((v) => follow(v, true)); if (playing) clock.play().catch(() => {}); });
  play.addEventListener("click", () => set(!playing));
  seek.addEventListener("input", () => { set(false); jump(Number(seek.value)); });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, button")) return;
    if (event.key === " ") { event.preventDefault(); set(!playing); }
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      set(false);
      jump(Math.min(page.frames - 1, Math.max(0, before + (event.key === "ArrowRight" ? 1 : -1))));
    }
  });
  set(true);
  tick();
})();
