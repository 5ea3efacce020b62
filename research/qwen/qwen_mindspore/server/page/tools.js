// Tools that the model may call: a JSON list as OpenAI has it, pasted by the user, who also answers the calls.
import { t } from "./i18n.js";

export const EXAMPLE = JSON.stringify([{
  type: "function",
  function: {
    name: "get_current_weather",
    description: "Get the current weather in a given location",
    parameters: {
      type: "object",
      properties: { location: { type: "string", description: "City, such as 杭州 or Boston" } },
      required: ["location"],
    },
  },
}], null, 2);

/**
 * The tools that a text describes: [] for none. Bare functions ({name, parameters}) are taken, too.
 *
 * Throws Error with one line: which entry, what was expected.
 */
export function parseTools(text) {
  if (!text.trim()) return [];
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(t("toolsJson", { error: error.message }));
  }
  const tools = (Array.isArray(value) ? value : [value]).map(toolOf);
  const names = tools.map(tool => tool.function.name);
  const twice = names.find((name, at) => names.indexOf(name) < at);
  if (twice !== undefined) throw new Error(t("toolsTwice", { name: twice }));
  return tools;
}

function toolOf(entry, at) {
  const described = entry?.function ?? entry;
  const number = at + 1;
  if (typeof described?.name !== "string" || !described.name) throw new Error(t("toolsName", { number }));
  const { parameters } = described;
  if (parameters !== undefined && (typeof parameters !== "object" || parameters === null)) {
    throw new Error(t("toolsParameters", { number }));
  }
  return { type: "function", function: described };
}

/**
 * Arguments laid out for reading; as they are where they are no JSON yet. Only spaces change: a number that JavaScript
 * can't hold stays what the model wrote.
 */
export function laidOut(text) {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  const pieces = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g);
  let depth = 0;
  const line = () => `\n${"  ".repeat(depth)}`;
  return pieces.map((piece, at) => {
    const isEmpty = /^(\{\}|\[\])$/;
    if ("{[".includes(piece)) {
      if (isEmpty.test(piece + pieces[at + 1])) return piece;
      depth += 1;
      return piece + line();
    }
    if ("}]".includes(piece)) {
      if (isEmpty.test(pieces[at - 1] + piece)) return piece;
      depth -= 1;
      return line() + piece;
    }
    if (piece === ",") return piece + line();
    return piece === ":" ? ": " : piece;
  }).join("");
}
