"use strict";
(() => {
  const data = JSON.parse(document.getElementById("episodes").textContent);
  const arm = document.getElementById("arm");
  const task = document.getElementById("task");
  const retried = document.getElementById("retried");
  const view = document.getElementById("view");

  // Every text of a model enters the page through textContent alone: nothing it says can become markup.
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const option = (value, text) => {
    const made = element("option", "", text);
    made.value = value;
    return made;
  };

  const reflections = (episode) => {
    const box = element("div", "reflections");
    const many = episode.candidates.length > 1;
    const list = many ? [...episode.candidates].sort((a, b) => b.score - a.score) : [episode.reflection];
    const source = episode.reflection.source;
    box.append(element("h4", "", many ? `${list.length} reflections by ${source}, scored; the chosen one is marked` : `reflection by ${source}`));
    let chosen = false;
    for (const item of list) {
      const isChosen = !chosen && (!many || (item.text === episode.reflection.text && item.score === episode.reflection.score));
      chosen ||= isChosen;
      const row = element("div", isChosen ? "candidate chosen" : "candidate");
      row.append(element("span", "score", item.score === null ? "" : item.score.toFixed(3)), element("span", "text", item.text));
      box.append(row);
    }
    return box;
  };

  const recalled = (episode) => {
    if (!episode.recalled.length) return [];
    const box = element("details", "recalled");
    const list = element("ul");
    for (const [id, entry] of episode.recalled) {
      const item = element("li");
      item.append(element("span", "id", id), element("span", "text", entry));
      list.append(item);
    }
    box.append(element("summary", "", `recalled: ${episode.recalled.length}`), list);
    return [box];
  };

  const played = (episode) => {
    const card = element("article", "episode");
    const header = element("header");
    header.append(
      element("div", "", `attempt ${episode.trial + 1}`),
      element("div", `outcome ${episode.success ? "solved" : "failed"}`, episode.success ? "✓ solved" : `✗ ${episode.stop}`),
      element("span", "", `return ${episode.return.toFixed(2)}`),
      element("span", "", `${episode.steps.length} steps`),
    );
    const steps = element("ol", "steps");
    for (const [thought, action, observation] of episode.steps) {
      const step = element("li");
      if (thought) step.append(element("div", "thought", thought));
      step.append(element("div", "action", action), element("div", "observation", observation));
      steps.append(step);
    }
    card.append(header, ...recalled(episode), element("p", "opening", episode.opening), steps);
    return card;
  };

  const show = () => {
    view.replaceChildren();
    for (const episode of data.arms[arm.value]?.[task.value] ?? []) {
      if (episode.reflection) view.append(reflections(episode));
      view.append(played(episode));
    }
    if (!view.childElementCount) view.append(element("p", "note", "This arm did not play this task."));
  };

  const list = () => {
    const before = task.value;
    task.replaceChildren();
    for (const { id, kind } of data.tasks) {
      const chain = data.arms[arm.value]?.[id] ?? [];
      if (!chain.length || (retried.checked && chain.length < 2)) continue;
      const marks = chain.map((episode) => (episode.success ? "✓" : "✗")).join(" ");
      task.append(option(id, `${kind ? kind + " · " : ""}${id}   ${marks}`));
    }
    if ([...task.options].some((item) => item.value === before)) task.value = before;
    show();
  };

  if (data.total > data.tasks.length) {
    document.getElementById("browsed").textContent += ` ${data.tasks.length} of ${data.total} tasks; all are in episodes.jsonl.`;
  }
  for (const name of Object.keys(data.arms)) arm.append(option(name, name));
  if (arm.dataset.best && data.arms[arm.dataset.best]) arm.value = arm.dataset.best;
  arm.addEventListener("change", list);
  retried.addEventListener("change", list);
  task.addEventListener("change", show);
  list();
})();
