// The official openai SDK for JavaScript against the gateway, only its base URL and key changed.
// Run by TestSDKs (e2e/sdk_test.go), which starts everything and sets the environment.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { baseURL as gateway, key, models, question, result, schema, text as greeting } from "./shared.mjs";

const baseURL = `${gateway}/v1`;
const hello = [{ role: "user", content: "hello" }];
const weather = { type: "function", function: { name: "get_weather", description: "The weather in a city", parameters: schema } };
const client = (name) => new OpenAI({ baseURL, apiKey: key(name), maxRetries: 0 });

for (const model of models) {
  test(`chat: ${model}`, async () => {
    const answer = await client().chat.completions.create({ model, messages: hello });
    assert.equal(answer.choices[0].message.content, greeting);
    assert.equal(answer.usage.total_tokens, 20);
  });

  test(`stream with usage: ${model}`, async () => {
    let text = "";
    let usage;
    const stream = await client().chat.completions.create({ model, messages: hello, stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, greeting);
    assert.equal(usage.total_tokens, 20);
  });

  for (const stream of [false, true]) {
    test(`runTools${stream ? ", streamed" : ""}: ${model}`, async () => {
      const tool = { ...weather, function: { ...weather.function, function: ({ city }) => `21 C in ${city}`, parse: JSON.parse } };
      const runner = client().chat.completions.runTools({ model, stream, messages: [{ role: "user", content: question }], tools: [tool] });
      assert.equal(await runner.finalContent(), result);
      assert.equal(await runner.finalFunctionToolCallResult(), "21 C in Lisbon");
    });
  }

  test(`429 of the provider: ${model}`, async () => {
    const messages = [{ role: "user", content: "the provider is busy" }];
    await assert.rejects(client().chat.completions.create({ model, messages }), OpenAI.RateLimitError);
  });
}

test("embeddings", async () => {
  const answer = await client().embeddings.create({ model: "text-embedding-3-small", input: "hello", dimensions: 8 });
  assert.equal(answer.data[0].embedding.length, 8);
});

test("responses", async () => {
  const answer = await client().responses.create({ model: "gpt-4o", input: "hello" });
  assert.equal(answer.output_text, "Hello! How can I help you today?");
});

test("models", async () => {
  const ids = [];
  for await (const model of client().models.list()) ids.push(model.id);
  assert.ok(ids.includes("gpt-4o"), ids.join());
});

test("a client that hangs up in the middle", async () => {
  const stream = await client().chat.completions.create({ model: "gpt-4o", messages: hello, stream: true });
  for await (const _ of stream) {
    stream.controller.abort();
    break;
  }
});

const refusals = [
  ["401 unknown key", OpenAI.AuthenticationError, () => new OpenAI({ baseURL, apiKey: "aid_sk_not_a_key", maxRetries: 0 }), { model: "gpt-4o", messages: hello }],
  ["401 revoked key", OpenAI.AuthenticationError, () => client("AID_REVOKED_KEY"), { model: "gpt-4o", messages: hello }],
  ["403 model", OpenAI.PermissionDeniedError, client, { model: "gpt-4-forbidden", messages: hello }],
  ["503 unreachable", OpenAI.InternalServerError, client, { model: "unreachable-openai", messages: hello }],
];
for (const [name, type, make, body] of refusals) {
  test(name, async () => {
    await assert.rejects(make().chat.completions.create(body), (err) => {
      assert.ok(err instanceof type, `${err.constructor.name}: ${err.message}`);
      assert.ok(err.requestID, "no request id");
      return true;
    });
  });
}

test("413 too large", async () => {
  await assert.rejects(
    client().chat.completions.create({ model: "gpt-4o", messages: [{ role: "user", content: "x".repeat(11_000_000) }] }),
    (err) => err instanceof OpenAI.APIError && err.status === 413,
  );
});

test("429 over the key's rate", async () => {
  const one = client("AID_ONE_RPM_KEY");
  await one.chat.completions.create({ model: "gpt-4o", messages: hello });
  await assert.rejects(one.chat.completions.create({ model: "gpt-4o", messages: hello }), OpenAI.RateLimitError);
});
