// The official @google/genai for JavaScript against the gateway, only its base URL and key changed.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ApiError, GoogleGenAI } from "@google/genai";
import { baseURL, key, question, result, schema, text } from "./shared.mjs";

const model = "gemini-2.5-pro";
const tools = [{ functionDeclarations: [{ name: "get_weather", description: "The weather in a city", parametersJsonSchema: schema }] }];
const make = (apiKey) => new GoogleGenAI({ apiKey, httpOptions: { baseUrl: baseURL } });
const client = make(key());
const ask = (more, c = client) => c.models.generateContent({ model, contents: "hello", ...more });

test("generate", async () => {
  const answer = await ask({ config: { systemInstruction: "Be short.", maxOutputTokens: 100 } });
  assert.equal(answer.text, text);
  assert.equal(answer.usageMetadata.totalTokenCount, 20);
});

test("stream", async () => {
  let got = "";
  for await (const chunk of await client.models.generateContentStream({ model, contents: "hello" })) got += chunk.text ?? "";
  assert.equal(got, text);
});

test("tools, round trip", async () => {
  const contents = [{ role: "user", parts: [{ text: question }] }];
  const first = await ask({ contents, config: { tools } });
  const [call] = first.functionCalls;
  assert.equal(call.args.city, "Lisbon");
  contents.push(first.candidates[0].content, { role: "user", parts: [{ functionResponse: { id: call.id, name: call.name, response: { result: "21 C" } } }] });
  assert.equal((await ask({ contents, config: { tools } })).text, result);
});

test("tools, streamed", async () => {
  const calls = [];
  for await (const chunk of await client.models.generateContentStream({ model, contents: question, config: { tools } })) calls.push(...(chunk.functionCalls ?? []));
  assert.deepEqual(calls.map((c) => [c.name, c.args.city]), [["get_weather", "Lisbon"]]);
});

test("embed", async () => {
  const answer = await client.models.embedContent({ model: "gemini-embedding-001", contents: ["hello", "goodbye"] });
  assert.equal(answer.embeddings.length, 2);
});

test("count tokens", async () => {
  assert.equal((await client.models.countTokens({ model, contents: "hello" })).totalTokens, 11);
});

test("models", async () => {
  const names = [];
  for await (const m of await client.models.list()) names.push(m.name);
  assert.ok(names.includes(`models/${model}`), names.join());
  assert.equal((await client.models.get({ model })).name, `models/${model}`);
});

const refusals = [
  ["401 unknown key", 401, {}, "aid_sk_not_a_key"],
  ["401 revoked key", 401, {}, key("AID_REVOKED_KEY")],
  ["403 model", 403, { model: "gemini-forbidden" }],
  ["413 too large", 413, { contents: "x".repeat(11_000_000) }],
  ["429 of the provider", 429, { contents: "the provider is busy" }],
  ["503 unreachable", 503, { model: "unreachable-gemini" }],
];
for (const [name, status, body, secret] of refusals) {
  test(name, async () => {
    await assert.rejects(ask(body, make(secret ?? key())), (err) => {
      assert.ok(err instanceof ApiError, `${err.constructor.name}: ${err.message}`);
      assert.equal(err.status, status);
      return true;
    });
  });
}

test("429 over the key's rate", async () => {
  const one = make(key("AID_ONE_RPM_KEY"));
  await ask({}, one);
  await assert.rejects(ask({}, one), (err) => err instanceof ApiError && err.status === 429);
});
