// The official @anthropic-ai/sdk for JavaScript against the gateway, only its base URL and key changed.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { z } from "zod";
import { baseURL, key, question, result, schema, text } from "./shared.mjs";

const model = "claude-sonnet-4-20250514";
const hello = [{ role: "user", content: "hello" }];
const weather = { name: "get_weather", description: "The weather in a city", input_schema: schema };
const make = (apiKey) => new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const client = make(key());
const ask = (more, c = client) => c.messages.create({ model, max_tokens: 100, messages: hello, ...more });

test("message", async () => {
  const answer = await ask({ system: "Be short." });
  assert.equal(answer.content[0].text, text);
  assert.equal(answer.usage.output_tokens, 9);
  assert.ok(answer._request_id);
});

test("stream", async () => {
  const stream = client.messages.stream({ model, max_tokens: 100, messages: hello });
  let got = "";
  stream.on("text", (delta) => { got += delta; });
  const final = await stream.finalMessage();
  assert.equal(got, text);
  assert.equal(final.usage.output_tokens, 9);
});

test("tools, round trip", async () => {
  const messages = [{ role: "user", content: question }];
  const first = await ask({ messages, tools: [weather] });
  const call = first.content.find((b) => b.type === "tool_use");
  assert.equal(call.input.city, "Lisbon");
  messages.push(
    { role: "assistant", content: [{ type: "tool_use", id: call.id, name: call.name, input: call.input }] },
    { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "21 C" }] },
  );
  assert.equal((await ask({ messages, tools: [weather] })).content[0].text, result);
});

test("tools, streamed", async () => {
  const final = await client.messages.stream({ model, max_tokens: 100, messages: [{ role: "user", content: question }], tools: [weather] }).finalMessage();
  assert.equal(final.content.find((b) => b.type === "tool_use").input.city, "Lisbon");
});

test("tool runner", async () => {
  const tool = betaZodTool({
    name: "get_weather", description: "The weather in a city",
    inputSchema: z.object({ city: z.string(), unit: z.string().optional() }), run: ({ city }) => `21 C in ${city}`,
  });
  const final = await client.beta.messages.toolRunner({ model, max_tokens: 100, messages: [{ role: "user", content: question }], tools: [tool] });
  assert.equal(final.content[0].text, result);
});

test("count tokens", async () => {
  assert.equal((await client.messages.countTokens({ model, messages: hello })).input_tokens, 11);
});

test("models", async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.ok(ids.includes(model), ids.join());
  assert.equal((await client.models.retrieve(model)).id, model);
});

const refusals = [
  ["401 unknown key", Anthropic.AuthenticationError, {}, "aid_sk_not_a_key"],
  ["401 revoked key", Anthropic.AuthenticationError, {}, key("AID_REVOKED_KEY")],
  ["403 model", Anthropic.PermissionDeniedError, { model: "claude-forbidden" }],
  ["429 of the provider", Anthropic.RateLimitError, { messages: [{ role: "user", content: "the provider is busy" }] }],
];
for (const [name, type, body, secret] of refusals) {
  test(name, async () => {
    await assert.rejects(ask(body, make(secret ?? key())), (err) => {
      assert.ok(err instanceof type, `${err.constructor.name}: ${err.message}`);
      assert.ok(err.requestID, "no request id");
      return true;
    });
  });
}

test("413 too large", async () => {
  await assert.rejects(ask({ messages: [{ role: "user", content: "x".repeat(11_000_000) }] }), (err) => err instanceof Anthropic.APIError && err.status === 413);
});

test("429 over the key's rate", async () => {
  const one = make(key("AID_ONE_RPM_KEY"));
  await ask({}, one);
  await assert.rejects(ask({}, one), Anthropic.RateLimitError);
});

test("503 unreachable", async () => {
  await assert.rejects(ask({ model: "unreachable-anthropic" }), (err) => err instanceof Anthropic.InternalServerError && err.status === 503);
});
