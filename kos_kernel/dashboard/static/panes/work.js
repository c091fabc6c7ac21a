// The work: jobs with their progress, the tasks of one of them, stories, and cancelling.

import kit from "../kit.js";

const FIELDS = ["name", "user", "state", "total", "done", "failed", "running", "since_s", "ended_s", "nodes", "reruns", "driver"];
const STATES = { running: "accent", done: "good", failed: "bad", cancelled: "warn", gone: "warn" };
const TASK_STATES = { waiting: "", sent: "accent", running: "accent", done: "good", failed: "bad", cancelled: "warn" };
const CHIPS = ["waiting", "sent", "done", "failed", "cancelled"];
const CHIP_WORDS = { sent: "running" };
const PAGE_ROWS = 100;
const PAGES_LIMIT = 40; // of tasks kept; those that were shown longest ago go first
const SETTLE_MS = 60; // of a list being scrolled, before its rows are asked for

const cell = (kind, ...children) => kit.el("div", { class: `kos-cell ${kind}`, role: "gridcell" }, ...children);

function storyBody(stories) {
  const body = kit.el("div", { class: "kos-story" });
  if (!stories.length) body.append(kit.el("p", {}, "It was not sent to a node yet, or no node remembers it."));
  for (const story of stories) {
    body.append(kit.el("h4", {}, story.task, " ", kit.el("span", { class: `kos-state ${TASK_STATES[story.state]}` }, story.state)));
    const rows = story.attempts.map((attempt) =>
      kit.el("li", {}, kit.el("b", {}, `Attempt ${attempt.number}`), ` on ${attempt.node}, sent ${kit.clock(attempt.sent_s)}: ${attempt.end === "open" ? "not ended" : attempt.end}`,
        attempt.ended_s ? ` after ${kit.duration(attempt.ended_s - (attempt.started_s ?? attempt.sent_s))}` : "",
        attempt.cause ? kit.el("em", {}, ` ${attempt.cause}`) : ""),
    );
    body.append(kit.el("ol", {}, ...rows));
  }
  return body;
}

// The tasks of one job, a page at a time.
function taskList({ ask, root, story, cancel }) {
  let job = null;
  let state = "";
  let search = "";
  let stamp = 0; // of the question that is shown; answers to earlier ones are dropped
  let matching = 0;
  let pages = new Map(); // number -> rows
  const asked = new Set();
  let settling;

  function create() {
    const row = kit.el("div", { class: "kos-task" });
    row.number = kit.el("span", { class: "kos-name" });
    row.state = kit.el("span", { class: "kos-state" });
    row.where = kit.el("span");
    row.took = kit.el("span", { class: "kos-figure" });
    row.cause = kit.el("span", { class: "kos-cause" });
    row.stop = kit.button("Cancel", "Cancel this task", () => cancel(`${job.id}.${row.task}`, list));
    row.append(cell("", row.number), cell("", row.state), cell("kos-where", row.where), cell("", row.took), cell("kos-why", row.cause), cell("kos-acts", row.stop));
    return row;
  }

  function at(index) {
    return pages.get(Math.floor(index / PAGE_ROWS))?.[index % PAGE_ROWS];
  }

  function fill(row, index) {
    const task = at(index);
    kit.mark(row, "data-task", task?.index);
    kit.mark(row, "data-state", task?.state);
    row.task = task?.index;
    kit.say(row.number, task ? `${task.index}` : "…");
    kit.say(row.state, task?.state ?? "");
    row.state.className = `kos-state ${TASK_STATES[task?.state] ?? ""}`;
    kit.say(row.where, task ? `${task.node}${task.attempts > 1 ? `, attempt ${task.attempts}` : ""}` : "");
    kit.say(row.took, task ? kit.duration(task.took_s) : "");
    kit.say(row.cause, task?.cause ?? "");
    row.stop.hidden = !cancel.may || !task || !["waiting", "sent", "running"].includes(task.state);
    row.stop.setAttribute("aria-label", `Cancel task ${task?.index ?? ""}`);
  }

  const list = new kit.VirtualList({ label: "Tasks", head: kit.head("kos-task", "Task", "State", "Node", "Took", "Cause", ""), create, fill, open: (index) => at(index) && story(`${job.id}.${at(index).index}`), height: 30 });
  const draw = list.draw.bind(list);
  list.draw = () => {
    draw();
    clearTimeout(settling);
    settling = setTimeout(() => fetchShown(false), SETTLE_MS);
  };

  function fetchShown(again) {
    if (!job || !list.range) return;
    const [from, to] = list.range;
    for (let page = Math.floor(from / PAGE_ROWS); page <= Math.floor(Math.max(from, to - 1) / PAGE_ROWS); page++) {
      if (again || !pages.has(page)) fetchPage(page);
    }
  }

  function fetchPage(page) {
    if (asked.has(page)) return;
    asked.add(page);
    const mine = stamp;
    ask("work", "tasks", { job: job.id, state, search, offset: page * PAGE_ROWS, count: PAGE_ROWS }).then(
      (window) => {
        if (mine !== stamp) return;
        asked.delete(page);
        pages.delete(page);
        pages.set(page, window.rows);
        while (pages.size > PAGES_LIMIT) pages.delete(pages.keys().next().value);
        show(window);
      },
      (error) => {
        if (mine !== stamp) return;
        asked.delete(page);
        root.say(error.message, true);
      },
    );
  }

  function show(window) {
    matching = window.matching;
    const all = Object.values(window.counts).reduce((sum, each) => sum + each, 0);
    for (const chip of chips) {
      const number = chip.key ? window.counts[chip.key] : all;
      kit.say(chip.number, kit.count(number ?? 0));
      chip.hidden = Boolean(chip.key) && !number && chip.key !== state;
    }
    if (list.length === matching) draw();
    else list.setLength(matching);
    none.hidden = matching > 0;
  }

  function anew() {
    stamp += 1;
    asked.clear();
    pages = new Map();
    for (const chip of chips) chip.setAttribute("aria-pressed", chip.key === state);
    list.box.scrollTop = 0;
    list.active = -1;
    if (job) fetchPage(0);
  }

  const chips = ["", ...CHIPS].map((key) => {
    const number = kit.el("b");
    const chip = kit.el("button", { type: "button", class: "kos-chip", "data-state": key || "all" }, key ? (CHIP_WORDS[key] ?? key) : "all", " ", number);
    chip.addEventListener("click", () => {
      state = key;
      anew();
    });
    return Object.assign(chip, { key, number });
  });
  const input = kit.el("input", { type: "search", inputmode: "numeric", placeholder: "Task number", "aria-label": "Search tasks by number" });
  input.addEventListener("input", () => {
    search = input.value.trim();
    anew();
  });
  const none = kit.el("p", { class: "kos-none", hidden: true }, "No task matches.");
  const tools = kit.el("div", { class: "kos-tools" }, ...chips, input);
  return {
    node: kit.el("div", { class: "kos-tasks" }, tools, list.node, none),
    list,
    focus: () => list.box.focus(),
    open(chosen) {
      job = chosen;
      [state, search, matching] = ["", "", chosen.total];
      input.value = "";
      list.setLength(chosen.total);
      anew();
    },
    close: () => (job = null),
    refresh: () => fetchShown(true),
    resize: (narrow) => list.setHeight(narrow ? 48 : 30),
    get job() {
      return job;
    },
  };
}

export default {
  name: "work",
  title: "Work",
  narrow: 600, // px: below it a row takes more lines
  mount({ ask, root, role }) {
    const jobs = new Map(); // id -> its fields
    let shown = [];
    let search = "";
    let state = "";
    let now = 0;

    const matches = (job) => {
      if (state === "running" && job.state !== "running") return false;
      if (state === "ended" && job.state === "running") return false;
      if (state === "failed" && !job.failed) return false;
      return `${job.id} ${job.name} ${job.user} ${job.state} ${job.nodes.join(" ")}`.toLowerCase().includes(search);
    };

    function create() {
      const row = kit.el("div", { class: "kos-job" });
      row.name = kit.el("span", { class: "kos-name" });
      row.id_ = kit.el("span", { class: "kos-small" });
      row.state = kit.el("span", { class: "kos-state" });
      row.bar = kit.bar("progress");
      row.counts = kit.el("span", { class: "kos-figure" });
      row.where = kit.el("span", { class: "kos-small" });
      row.story = kit.button("Story", "Story", () => story(row.job));
      row.stop = kit.button("Cancel", "Cancel", () => cancel(row.job, list));
      row.append(
        cell("kos-who", row.name, row.id_),
        cell("kos-jobstate", row.state),
        cell("kos-progress", row.bar, row.counts),
        cell("kos-where", row.where),
        cell("kos-acts", row.story, row.stop),
      );
      return row;
    }

    function fill(row, index) {
      const job = shown[index];
      row.job = job.id;
      kit.mark(row, "data-job", job.id);
      kit.mark(row, "data-state", job.state);
      kit.say(row.name, job.name);
      row.name.title = job.name;
      kit.say(row.id_, `${job.id}${job.user ? ` · ${job.user}` : ""}`);
      kit.say(row.state, job.state);
      row.state.className = `kos-state ${STATES[job.state] ?? ""}`;
      const of = job.total || 1;
      const ill = job.state === "cancelled" ? "cancelled" : "failed";
      const text = `${kit.count(job.done)} of ${kit.count(job.total)} done${job.failed ? `, ${kit.count(job.failed)} ${ill}` : ""}${job.running ? `, ${kit.count(job.running)} running` : ""}`;
      row.bar.draw([[job.done / of, "good"], [job.failed / of, job.state === "cancelled" ? "warn" : "bad"], [job.running / of, "accent"]], text);
      kit.say(row.counts, `${kit.count(job.done)} / ${kit.count(job.total)}${job.failed ? ` · ${kit.count(job.failed)} ${ill}` : ""}${job.reruns ? ` · ${kit.count(job.reruns)} rerun` : ""}`);
      const took = kit.duration(Math.max(0, (job.ended_s ?? now) - job.since_s));
      const nodes = job.nodes.length > 3 ? `${job.nodes.length} nodes` : job.nodes.join(", ");
      kit.say(row.where, [took, nodes, job.driver && `driven by ${job.driver}`].filter(Boolean).join(" · "));
      row.stop.hidden = !role.cancel || job.state !== "running";
      row.stop.setAttribute("aria-label", `Cancel ${job.name} (${job.id})`);
      row.story.setAttribute("aria-label", `Story of ${job.name} (${job.id})`);
    }

    const list = new kit.VirtualList({ label: "Jobs", head: kit.head("kos-job", "Job", "State", "Progress", "Time and nodes", ""), create, fill, open: (index) => openTasks(shown[index]), height: 46 });
    const none = kit.el("p", { class: "kos-none" });

    const cancel = Object.assign(
      (id, list) => {
        list.box.focus(); // the button goes with what it cancels
        root.say(`Cancelling ${id}…`);
        ask("work", "cancel", { id }).then(() => root.say(`${id} is cancelled.`), (error) => root.say(error.message, true));
      },
      { may: role.cancel },
    );
    const story = (id) => {
      ask("work", "story", { id }).then(
        (told) => {
          const body = storyBody(told.stories);
          if (told.more) body.append(kit.el("p", {}, `${kit.count(told.more)} more tasks; open the job to see them.`));
          kit.dialog(root, `Story of ${id}`, body).dataset.story = id;
        },
        (error) => root.say(error.message, true),
      );
    };
    const tasks = taskList({ ask, root, story, cancel });

    const input = kit.el("input", { type: "search", placeholder: "Search jobs", "aria-label": "Search jobs by name, id, user, state or node" });
    input.addEventListener("input", () => {
      search = input.value.trim().toLowerCase();
      choose();
    });
    const filter = kit.el("select", { "aria-label": "Show jobs" }, ...["all", "running", "ended", "failed"].map((each) => kit.el("option", { value: each === "all" ? "" : each }, each)));
    filter.addEventListener("change", () => {
      state = filter.value;
      choose();
    });

    const back = kit.button("← Jobs", "Back to the jobs", () => closeTasks());
    const heading = kit.el("div", { class: "kos-jobhead" });
    const jobView = kit.el("div", {}, list.node, none);
    const taskView = kit.el("div", { hidden: true }, kit.el("div", { class: "kos-tools" }, back, heading), tasks.node);

    function openTasks(job) {
      jobView.hidden = true;
      taskView.hidden = false;
      taskView.dataset.job = job.id;
      head(job);
      tasks.open(job);
      tasks.focus();
    }

    function closeTasks() {
      tasks.close();
      taskView.hidden = true;
      jobView.hidden = false;
      list.draw();
      list.box.focus();
    }
    taskView.addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && closeTasks());

    function head(job) {
      if (job) kit.say(heading, `${job.name} · ${job.id} · ${job.state}`);
    }

    function choose() {
      shown = [...jobs.values()].filter(matches);
      shown.sort((a, b) => (a.state !== "running") - (b.state !== "running") || b.since_s - a.since_s || (a.id < b.id ? -1 : 1));
      list.setLength(shown.length);
      none.hidden = shown.length > 0;
      kit.say(none, jobs.size ? "No job matches." : "No work yet. Put %%kos run --distribute over a cell.");
    }

    choose();
    return {
      node: kit.el("div", {}, jobView, taskView),
      tools: [input, filter],
      note: () => (jobs.size ? kit.count(jobs.size) : ""),
      resize(narrow) {
        list.setHeight(narrow ? 96 : 46);
        tasks.resize(narrow);
      },
      update(news) {
        now = news.at_s;
        if (news.full) jobs.clear();
        for (const [id, row] of Object.entries(news.changed)) jobs.set(id, { id, ...Object.fromEntries(FIELDS.map((field, place) => [field, row[place]])) });
        for (const id of news.removed) jobs.delete(id);
        choose();
        if (tasks.job) {
          head(jobs.get(tasks.job.id));
          tasks.refresh();
        }
      },
    };
  },
};
