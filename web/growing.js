// Nodes with a growing row of slots. The editor makes a copied node, or one that goes into a subgraph, with the first slots
// alone and adds the others behind all inputs, while links are counted by the slots' numbers: a third LoRA's link lands
// on another input. Here the slots are in their places before the links come.

import { app } from "../../scripts/app.js";

const GROWN = /^(\w+\.\w+_)\d+$/;

function grow(node, saved) {
  for (const { name } of saved) {
    const [, row] = GROWN.exec(name) ?? [];
    const last = row ? node.inputs.findLastIndex((input) => input.name.startsWith(row)) : -1;
    if (last < 0 || node.inputs.some((input) => input.name === name)) continue;
    node.addInput(name, node.inputs[last].type, { label: name.split(".").at(-1) });
    const [slot] = node.inputs.splice(node.inputs.length - 1, 1);
    node.inputs.splice(last + 1, 0, slot);
  }
}

app.registerExtension({
  name: "DiffusionBlend.Growing",
  beforeRegisterNodeDef(nodeType, { name }) {
    if (!/^DiffusionBlend[A-Z]/.test(name)) return;
    const own = nodeType.prototype.configure;
    nodeType.prototype.configure = function (data, ...rest) {
      try {
        grow(this, data?.inputs ?? []);
      } catch (error) {
        console.warn("Diffusion Blend: slots of a copied node may need connecting again.", error);
      }
      return own.call(this, data, ...rest);
    };
  },
});
