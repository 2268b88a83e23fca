"use strict";
const audit = JSON.parse(document.getElementById("audit").textContent);
const boxes = Array.from(document.querySelectorAll("input[type=radio]"));

function marks() {
  const chosen = {};
  for (const box of boxes) if (box.checked) chosen[box.name] = box.value;
  return chosen;
}

function showProgress() {
  const done = Object.keys(marks()).length;
  document.getElementById("progress").textContent = `${done} of ${audit.answers.length} answers marked`;
}

function save() {
  const text = JSON.stringify({ audit: audit.id, marks: marks() }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "marks.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const box of boxes) box.addEventListener("change", showProgress);
document.getElementById("save").addEventListener("click", save);
showProgress();
