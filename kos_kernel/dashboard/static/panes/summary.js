// The cluster as a whole: figures of now, each with its last two minutes.

import kit from "../kit.js";

const POINTS = 120; // samples, one a second

const TILES = [
  ["nodes", "Nodes", null, (t) => [`${t.up}`, `of ${t.nodes} alive`]],
  ["busy", "Slots", 1, (t) => [`${t.busy}`, `of ${t.slots} busy${t.queued ? `, ${kit.count(t.queued)} queued` : ""}`]],
  ["cpu", "CPU", 1, (t) => [kit.percent(t.cpu_share), "of all nodes"]],
  ["memory", "Memory", 1, (t) => [kit.percent(t.memory_share), "of all nodes"]],
  ["network", "Network", 0, (t) => [`${kit.bytes(t.received_bytes_s + t.sent_bytes_s)}/s`, `↓ ${kit.bytes(t.received_bytes_s)} ↑ ${kit.bytes(t.sent_bytes_s)}`]],
  ["ended", "Tasks", 0, (t) => [kit.count(t.done), `done${t.failed ? `, ${kit.count(t.failed)} not` : ""}; ${t.ended_per_s >= 10 ? kit.count(Math.round(t.ended_per_s)) : t.ended_per_s.toFixed(1)}/s`]],
];

export default {
  name: "summary",
  title: "Cluster",
  bare: true,
  mount() {
    const series = {};
    const tiles = TILES.map(([key, title, top, text]) => {
      const value = kit.el("b");
      const note = kit.el("span");
      const spark = top == null ? kit.bar("nodes alive") : kit.sparkline(POINTS);
      const box = kit.el("div", { class: "kos-tile", "data-key": key }, kit.el("div", { class: "kos-title" }, title), value, note, spark);
      return { key, top, text, value, note, spark, box };
    });
    const node = kit.el("div", { class: "kos-tiles" }, ...tiles.map((tile) => tile.box));
    return {
      node,
      update(news) {
        if (news.history) Object.assign(series, news.history);
        for (const [key, value] of Object.entries(news.now)) {
          series[key] ??= [];
          if (!news.history) series[key].push(value);
          if (series[key].length > 2 * POINTS) series[key].splice(0, series[key].length - POINTS);
        }
        for (const tile of tiles) {
          const [value, note] = tile.text(news.totals);
          kit.say(tile.value, value);
          kit.say(tile.note, note);
          if (tile.top == null) {
            const of = news.totals.nodes || 1;
            tile.spark.draw([[news.totals.up / of, "good"], [1 - news.totals.up / of, "bad"]], `${value} ${note}`);
          } else {
            const shown = (series[tile.key] ?? []).slice(-POINTS);
            tile.spark.draw(shown, tile.top || Math.max(1e-9, ...shown));
          }
        }
      },
    };
  },
};
