"use strict";
(async () => {
  const about = JSON.parse(document.getElementById("charts").textContent);
  const item = { docid: "report", roots: about.roots, root_ids: Object.keys(about.roots) };
  const managers = await Bokeh.embed.embed_items({ report: about.document }, [item]);
  const figures = item.root_ids.map((id) => Bokeh.documents[0].get_model_by_id(id));
  const axis = Bokeh.documents[0].get_model_by_id(about.axis);
  const whole = [axis.start, axis.end];
  const [first, last] = about.span;
  const readout = document.getElementById("window");
  const rows = [...document.querySelectorAll("tr[data-key]")];
  const curves = document.querySelector(".curves");
  let current = null;

  const name = (step) => Math.round(step).toLocaleString("en-US");
  const tell = () => {
    readout.textContent = `steps ${name(Math.max(axis.start, first))} to ${name(Math.min(axis.end, last))}`;
    document.documentElement.dataset.low = Math.round(axis.start);
    document.documentElement.dataset.high = Math.round(axis.end);
  };
  const show = (low, high) => {
    const width = Math.min(Math.max(high - low, axis.min_interval), whole[1] - whole[0]);
    const start = Math.min(Math.max((low + high - width) / 2, whole[0]), whole[1] - width);
    axis.setv({ start, end: start + width });
  };
  const choose = (row) => {
    rows.forEach((each) => each.removeAttribute("aria-current"));
    current = row;
    if (row === null) return;
    row.setAttribute("aria-current", "true");
    const box = row.closest(".scroll");
    const head = box.querySelector("thead").offsetHeight;
    if (row.offsetTop - head < box.scrollTop || row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = row.offsetTop - head;
    }
    show(Number(row.dataset.low), Number(row.dataset.high));
    const place = curves.getBoundingClientRect();
    if (place.bottom < 200 || place.top > innerHeight - 200) curves.scrollIntoView();
  };
  const follow = () => {
    const wanted = rows.find((row) => `#${row.dataset.key}` === location.hash);
    if (wanted) choose(wanted);
  };
  const move = (by) => {
    const episodes = rows.filter((row) => row.dataset.key.startsWith("episode-"));
    const place = episodes.indexOf(current);
    const next = place < 0 ? (by > 0 ? 0 : episodes.length - 1) : (place + by + episodes.length) % episodes.length;
    location.hash = episodes[next].dataset.key;
  };
  const middle = () => (axis.start + axis.end) / 2;
  const width = () => axis.end - axis.start;
  const reset = () => {
    choose(null);
    history.replaceState(null, "", location.pathname + location.search);
    show(...whole);
  };
  const actions = {
    whole: reset,
    in: () => show(middle() - width() / 4, middle() + width() / 4),
    out: () => show(middle() - width(), middle() + width()),
    earlier: () => show(axis.start - width() / 2, axis.end - width() / 2),
    later: () => show(axis.start + width() / 2, axis.end + width() / 2),
    drag: () => {
      const button = document.querySelector("button[data-do=drag]");
      const moves = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(moves));
      for (const tool of figures.flatMap((figure) => figure.toolbar.tools)) {
        if (tool.type === "PanTool") tool.active = moves;
        if (tool.type === "BoxZoomTool") tool.active = !moves;
      }
    },
    previous: () => move(-1),
    next: () => move(1),
  };

  document.querySelectorAll("button[data-do]").forEach((button) => {
    button.addEventListener("click", () => actions[button.dataset.do]());
  });
  rows.forEach((row) => row.addEventListener("click", () => {
    if (location.hash === `#${row.dataset.key}`) choose(row);
    else location.hash = row.dataset.key;
  }));
  curves.addEventListener("dblclick", (event) => {
    if (event.target.closest(".plot")) reset();
  });
  addEventListener("hashchange", follow);
  axis.change.connect(tell);
  const repaint = () => managers.forEach((manager) => manager.forEach?.((view) => view.repaint?.()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
  tell();
  follow();
  document.documentElement.dataset.charts = "ready";
})();
