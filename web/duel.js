// Blend Duel: buttons that write the text of the `answers` widget and run the graph again. They save nothing themselves, so
// that a graph is the same with and without them; without them one types the lines.

import { app } from "../../scripts/app.js";
import { resultOf } from "./parts.js";
import { word } from "./words.js";

const NODE = "DiffusionBlendDuel";
const ANSWERS = { "A is better": ">", "B is better": "<", "no difference": "=" };
const UNDO = "undo the last answer";

const linesOf = (text) => String(text).split("\n").filter((line) => line.trim());

/** The buttons of one node. A click is about the pair that the last run has shown; before any run it only runs. */
function attach(node) {
  const answers = node.widgets.find(({ name }) => name === "answers");
  let answered = false; // a second click on the same images is no second answer

  const run = (lines) => {
    answered = true;
    answers.value = lines.join("\n");
    answers.callback?.(answers.value);
    node.setDirtyCanvas(true, true);
    app.queuePrompt(0, 1);
  };
  const button = (label, lines) => {
    const widget = node.addWidget("button", label, null, () => run(lines(linesOf(answers.value))), { serialize: false });
    widget.label = word(label);
    widget.serialize = false; // this one keeps it out of the workflow, the option keeps it out of the prompt
  };
  for (const [label, sign] of Object.entries(ANSWERS)) {
    button(label, (lines) => {
      const pair = answered ? null : resultOf(node)?.pair;
      return pair ? [...lines, `${pair[0]} ${sign} ${pair[1]}`] : lines;
    });
  }
  button(UNDO, (lines) => lines.slice(0, -1));

  const own = node.onExecuted;
  node.onExecuted = function (...sent) {
    own?.apply(this, sent);
    answered = false;
  };
}

app.registerExtension({
  name: "DiffusionBlend.Duel",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    try {
      attach(node);
    } catch (error) {
      console.warn("Diffusion Blend: no buttons on Blend Duel; its text works as ever.", error);
    }
  },
});
