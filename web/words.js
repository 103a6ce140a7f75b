// What the scripts of this pack draw as words, in the editor's language. The texts are in locales/<language>/main.json;
// what is not there is drawn in English.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let texts = {};
try {
  texts = await (await api.fetchApi("/i18n")).json();
} catch (error) {
  console.debug("Diffusion Blend: no translations.", error);
}

/** The word or sentence in the editor's language; `{n}` in it becomes the number `n`. */
export function word(english, n = "") {
  const language = app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
  return (texts[language]?.diffusionBlend?.[english] ?? english).replace("{n}", n);
}
