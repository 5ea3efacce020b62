// The parameters of an answer: their ranges, and what the server says about them.

/** `isWhole`: integers alone; `isOpen`: any number, so no slider. */
const ALL = [
  { name: "temperature", low: 0, high: 2, step: 0.05 },
  { name: "top_p", low: 0.01, high: 1, step: 0.01 },
  { name: "top_k", low: 0, high: 200, step: 1, isWhole: true },
  { name: "min_p", low: 0, high: 1, step: 0.01 },
  { name: "repetition_penalty", low: 0.5, high: 2, step: 0.01 },
  { name: "presence_penalty", low: -2, high: 2, step: 0.05 },
  { name: "frequency_penalty", low: -2, high: 2, step: 0.05 },
  { name: "max_tokens", low: 1, high: 2 ** 31, step: 1, isWhole: true, isOpen: true },
  { name: "seed", low: Number.MIN_SAFE_INTEGER, high: Number.MAX_SAFE_INTEGER, step: 1, isWhole: true, isOpen: true },
];

const LENGTHS = ["max_tokens", "max_new_tokens", "max_completion_tokens"];

/**
 * The parameters with the ranges and defaults of a model.
 *
 * `card` is what GET /v1/models/{id} gives: `defaults` {name: value} and `limits` {name: [low, high]} or {name: {min,
 * max}}; both may be missing. `max_model_len`: prompt and answer together.
 */
export function parametersOf(card) {
  return ALL.map(parameter => {
    const names = parameter.name === "max_tokens" ? LENGTHS : [parameter.name];
    const limit = names.map(name => card?.limits?.[name]).find(found => found !== undefined && found !== null)
      ?? (parameter.name === "max_tokens" ? { max: card?.max_model_len } : {});
    const [low, high] = Array.isArray(limit) ? limit : [limit.min, limit.max];
    return {
      ...parameter,
      low: Number.isFinite(low) ? low : parameter.low,
      high: Number.isFinite(high) ? high : parameter.high,
      initial: names.map(name => card?.defaults?.[name]).find(Number.isFinite),
    };
  });
}

/** What a user typed: a number, null for nothing (the server's default), or undefined: the parameter can't have it. */
export function valueOf(parameter, text) {
  if (text.trim() === "") return null;
  const value = Number(text);
  const isFit = Number.isFinite(value) && value >= parameter.low && value <= parameter.high
    && (!parameter.isWhole || Number.isSafeInteger(value));
  return isFit ? value : undefined;
}

/** Of remembered values, those that this model's parameters can have. */
export function fitting(parameters, values) {
  const pairs = parameters.map(({ name }, at) => [name, valueOf(parameters[at], String(values?.[name] ?? ""))]);
  return Object.fromEntries(pairs.filter(([, value]) => value !== null && value !== undefined));
}
