// Reward Scorer: after a run, its table, best image first; a bar in each cell goes from the column's worst to its best.

import { addToNodes, element, resultOf } from "./parts.js";
import { word } from "./words.js";

const ROW = 20;
const MOST_ROWS = 8; // the rest is scrolled to
const STYLE = `
.diffusion-blend-scores { overflow: auto; }
.diffusion-blend-scores table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.diffusion-blend-scores tr { height: ${ROW}px; }
.diffusion-blend-scores th { position: sticky; top: 0; background: var(--comfy-menu-bg, #353535); max-width: 70px; font-weight: normal;
  opacity: 0.9; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.diffusion-blend-scores th, .diffusion-blend-scores td { padding: 0 4px; text-align: right; }
.diffusion-blend-scores td { background: linear-gradient(var(--p-primary-color, #64a0ff), var(--p-primary-color, #64a0ff))
  0 100% / calc(var(--share, 0) * 100%) 2px no-repeat; }
.diffusion-blend-scores tr:first-child td { font-weight: bold; }`;

/** How far each number is from the least to the greatest; 0 for all where these are one, or there is none. */
function sharesOf(numbers) {
  const known = numbers.filter(Number.isFinite);
  const [least, greatest] = [Math.min(...known), Math.max(...known)];
  return numbers.map((number) => (greatest > least && Number.isFinite(number) ? (number - least) / (greatest - least) : 0));
}

/** rows: [image, score of each reward ..., weighted score] as text; `heading` too. */
function table([heading, ...rows]) {
  const names = [word(heading[0]), ...heading.slice(1, -1), word(heading.at(-1))];
  const columns = heading.map((_, i) => (i === 0 ? rows.map(() => 0) : sharesOf(rows.map((row) => Number(row[i])))));
  const cell = (text, row, column) => element("td", { style: `--share: ${columns[column][row].toFixed(3)}` }, text);
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { title: name }, name)))),
    element("tbody", {}, ...rows.map((row, i) => element("tr", {}, ...row.map((text, j) => cell(text, i, j))))),
  );
}

function attach(node, part, state) {
  part.root.dataset.tells = "all";
  return () => {
    const scores = resultOf(node)?.scores;
    if (JSON.stringify(scores) === state.seen) return;
    Object.assign(state, { seen: JSON.stringify(scores), rows: scores?.length ?? 0 });
    part.fill(...(scores ? [table(scores)] : []));
  };
}

addToNodes({
  kind: "DiffusionBlendRewardScorer",
  title: "Reward Scorer",
  name: "scores",
  style: STYLE,
  height: ({ rows }) => (rows ? ROW * Math.min(rows, MOST_ROWS + 1) + 4 : 0),
  attach,
});
