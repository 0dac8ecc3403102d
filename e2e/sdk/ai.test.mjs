// Vercel's AI SDK (ai with @ai-sdk/openai) against the gateway, only its base URL and key changed.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, embedMany, generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";
import { baseURL, key, models, question, result, text } from "./shared.mjs";

const make = (apiKey) => createOpenAI({ baseURL: `${baseURL}/v1`, apiKey });
const openai = make(key());
const tools = {
  get_weather: tool({
    description: "The weather in a city",
    inputSchema: z.object({ city: z.string(), unit: z.enum(["celsius", "fahrenheit"]).optional() }),
    execute: async ({ city }) => `21 C in ${city}`,
  }),
};
const once = { maxRetries: 0 };
// One test for each API that the SDK speaks to OpenAI, and each model.
const apis = [["responses", openai.responses("gpt-4o")], ...models.map((m) => [`chat, ${m}`, openai.chat(m)])];

for (const [name, model] of apis) {
  test(`generateText: ${name}`, async () => {
    const answer = await generateText({ model, prompt: "hello", ...once });
    assert.equal(answer.text, text);
    assert.equal(answer.usage.totalTokens, 20);
  });

  test(`streamText: ${name}`, async () => {
    const answer = streamText({ model, prompt: "hello", ...once });
    let got = "";
    for await (const piece of answer.textStream) got += piece;
    assert.equal(got, text);
    assert.equal((await answer.usage).totalTokens, 20);
  });

  test(`tools, round trip: ${name}`, async () => {
    const answer = await generateText({ model, prompt: question, tools, stopWhen: isStepCount(3), ...once });
    assert.equal(answer.text, result);
    assert.equal(answer.steps[0].toolCalls[0].input.city, "Lisbon");
    assert.equal(answer.steps[0].toolResults[0].output, "21 C in Lisbon");
  });

  test(`tools, streamed: ${name}`, async () => {
    const answer = streamText({ model, prompt: question, tools, stopWhen: isStepCount(3), ...once });
    let got = "";
    for await (const piece of answer.textStream) got += piece;
    assert.equal(got, result);
  });
}

test("embedMany", async () => {
  const answer = await embedMany({ model: openai.embedding("text-embedding-3-small"), values: ["hello", "goodbye"], ...once });
  assert.equal(answer.embeddings.length, 2);
});

const refusals = [
  ["401 unknown key", 401, make("aid_sk_not_a_key")("gpt-4o")],
  ["401 revoked key", 401, make(key("AID_REVOKED_KEY"))("gpt-4o")],
  ["403 model", 403, openai("gpt-4-forbidden")],
  ["503 unreachable", 503, openai.chat("unreachable-openai")],
];
for (const [name, status, model] of refusals) {
  test(name, async () => {
    await assert.rejects(generateText({ model, prompt: "hello", ...once }), (err) => {
      assert.ok(APICallError.isInstance(err), `${err.constructor.name}: ${err.message}`);
      assert.equal(err.statusCode, status);
      assert.ok(err.data.error.message);
      return true;
    });
  });
}

test("429 over the key's rate", async () => {
  const model = make(key("AID_ONE_RPM_KEY")).chat("gpt-4o");
  await generateText({ model, prompt: "hello", ...once });
  await assert.rejects(generateText({ model, prompt: "hello", ...once }), (err) => APICallError.isInstance(err) && err.statusCode === 429 && err.isRetryable);
});
