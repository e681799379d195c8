// What OpenAI's Node client makes of a served model: node test-clients.mjs PICTURE, with the server's address in GLIMPSE_URL.

import { readFileSync } from "node:fs";
import { deepStrictEqual as same, ok } from "node:assert/strict";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const client = new OpenAI({ baseURL: process.env.GLIMPSE_URL + "/v1", apiKey: "unused", maxRetries: 0, timeout: 60_000 });
const chat = "scenes-llava", retrieval = "scenes-blip2-itm";
const picture = "data:image/png;base64," + readFileSync(process.argv[2]).toString("base64");
const ask = { model: chat, max_tokens: 40, messages: [{ role: "user", content: [
  { type: "image_url", image_url: { url: picture } }, { type: "text", text: "Describe the image." }] }] };

// text and picture
const text = await client.chat.completions.create({ model: chat, max_tokens: 5, messages: [{ role: "user", content: "hello" }] });
ok(text.usage.completion_tokens <= 5 && text.choices[0].message.role === "assistant", JSON.stringify(text));
const whole = await client.chat.completions.create(ask);
const caption = whole.choices[0].message.content;
ok(caption.includes("circle") && whole.usage.prompt_tokens > 64, JSON.stringify(whole));

// the stream, read by hand and by the client's own helper
let pieces = [], usage;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  usage = chunk.usage ?? usage;
  for (const choice of chunk.choices) pieces.push(choice.delta.content ?? "");
}
same(pieces.join(""), caption);
// without what came out of caches, which another request may have filled
const counted = (u) => [u.prompt_tokens, u.completion_tokens, u.total_tokens, u.prompt_tokens_details.image_tokens];
same(counted(usage), counted(whole.usage));
same(await client.chat.completions.stream(ask).finalContent(), caption);

// leaving a stream is no trouble for those that stay
const left = await client.chat.completions.create({ ...ask, stream: true });
for await (const _ of left) break;
left.controller.abort();

// seed
const drawn = async (seed) => (await client.chat.completions.create({ // of a picture the model is too sure for chance to have a say
  model: chat, max_tokens: 12, n: 3, temperature: 2, seed, messages: [{ role: "user", content: "hello" }] })).choices.map((c) => c.message.content);
const first = await drawn(7);
same(await drawn(7), first);
ok(new Set(first).size > 1, first.join("; "));

// json_schema and tools
const schema = { type: "object", additionalProperties: false, required: ["shape", "count"],
  properties: { shape: { enum: ["circle", "square"] }, count: { type: "integer", minimum: 0, maximum: 9 } } };
const structured = await client.chat.completions.create({ ...ask, max_tokens: 200,
  response_format: { type: "json_schema", json_schema: { name: "scene", schema, strict: true } } });
const value = JSON.parse(structured.choices[0].message.content);
ok(["circle", "square"].includes(value.shape) && value.count >= 0 && value.count <= 9, JSON.stringify(value));
const tools = [{ type: "function", function: { name: "report", description: "Reports a shape", parameters: schema, strict: true } }];
const called = (await client.chat.completions.create({ ...ask, max_tokens: 200, tools, tool_choice: "required" })).choices[0];
same([called.finish_reason, called.message.tool_calls[0].function.name], ["tool_calls", "report"]);
const report = JSON.parse(called.message.tool_calls[0].function.arguments);
ok(["circle", "square"].includes(report.shape), JSON.stringify(report));
const streamed = await client.chat.completions.stream({ ...ask, max_tokens: 200, tools, tool_choice: "required" }).finalMessage();
same(JSON.parse(streamed.tool_calls[0].function.arguments), report);
const after = await client.chat.completions.create({ ...ask, max_tokens: 5, tools, messages: [...ask.messages, called.message,
  { role: "tool", tool_call_id: called.message.tool_calls[0].id, content: "noted" }] });
ok(after.usage.prompt_tokens > whole.usage.prompt_tokens, JSON.stringify(after));

// responses
const input = [{ role: "user", content: [{ type: "input_image", image_url: picture, detail: "auto" }, { type: "input_text", text: "Describe the image." }] }];
const response = await client.responses.create({ model: chat, input, max_output_tokens: 40, store: false });
same([response.output_text, response.status], [caption, "completed"]);
const kinds = [];
for await (const event of await client.responses.create({ model: chat, input, max_output_tokens: 40, stream: true, store: false })) kinds.push(event.type);
same([kinds[0], kinds.at(-1)], ["response.created", "response.completed"]);

// embeddings
const floats = await client.embeddings.create({ model: retrieval, input: ["a red circle", "a blue square"], encoding_format: "float" });
const packed = await client.embeddings.create({ model: retrieval, input: ["a red circle", "a blue square"] }); // the client asks for base64
for (const [i, { embedding }] of floats.data.entries()) {
  ok(Math.abs(embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4, `length of embedding ${i}`);
  ok(embedding.every((x, j) => Math.abs(x - packed.data[i].embedding[j]) < 1e-6) && packed.data[i].embedding.length === embedding.length, `base64 of embedding ${i}`);
}

// models and errors
const served = [];
for await (const model of client.models.list()) served.push(model.id);
same(served.sort(), [retrieval, chat]);
const refused = (promise, status) => promise.then((got) => ok(false, JSON.stringify(got)), (error) => { same(error.status, status); ok(error.code && error.message, String(error)); });
await refused(client.chat.completions.create({ ...ask, model: "none" }), 404);
await refused(client.chat.completions.create({ ...ask, temperature: 9 }), 400);

console.log(`node, openai ${VERSION}: text, picture, stream, abort, seed, json_schema, tools, responses, embeddings, models, errors`);
