// Shows one of the pictures of states.js by what is chosen. No library, no network.
const form = document.getElementById("try");
for (const name of ["concept", "method", "attack"]) {
  for (const value of new Set(STATES.map((state) => state[name]))) {
    form.elements[name].add(new Option(value, value));
  }
}
function show() {
  const chosen = (state) => ["concept", "method", "attack"].every((name) => state[name] === form.elements[name].value);
  const state = STATES.find(chosen);
  const still = document.getElementById("still");
  still.src = "_static/try/" + state.file;
  still.alt = state.says;
  document.getElementById("says").textContent = state.says;
  document.getElementById("code").textContent = state.code;
}
form.addEventListener("change", show);
show();
