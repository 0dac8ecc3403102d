// @openai/agents against the gateway, only its client's base URL and key changed.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { baseURL, key, models, question, result, text } from "./shared.mjs";

const make = (name) => new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: key(name), maxRetries: 0 });
const client = make();
const runner = new Runner({ tracingDisabled: true });
const weather = tool({
  name: "get_weather", description: "The weather in a city",
  parameters: z.object({ city: z.string(), unit: z.enum(["celsius", "fahrenheit"]).nullable() }),
  execute: async ({ city }) => `21 C in ${city}`,
});
const agent = (model, more) => new Agent({ name: "Weather", instructions: "Be short.", model, ...more });
const apis = [
  ["responses", new OpenAIResponsesModel(client, "gpt-4o")],
  ...models.map((m) => [`chat completions, ${m}`, new OpenAIChatCompletionsModel(client, m)]),
];

for (const [name, model] of apis) {
  test(`run: ${name}`, async () => {
    assert.equal((await runner.run(agent(model), "hello")).finalOutput, text);
  });

  test(`stream: ${name}`, async () => {
    const run = await runner.run(agent(model), "hello", { stream: true });
    let got = "";
    for await (const piece of run.toTextStream()) got += piece;
    await run.completed;
    assert.equal(got, text);
  });

  test(`tool: ${name}`, async () => {
    const run = await runner.run(agent(model, { tools: [weather] }), question);
    assert.equal(run.finalOutput, result);
    assert.ok(run.newItems.some((i) => i.type === "tool_call_output_item" && i.output === "21 C in Lisbon"));
  });
}

test("handoff", async () => {
  const lisbon = agent(apis[0][1], { name: "Lisbon", handoffDescription: "Knows Lisbon", tools: [weather] });
  const triage = new Agent({ name: "Triage", instructions: "Hand off.", model: apis[0][1], handoffs: [lisbon] });
  const run = await runner.run(triage, "please hand over");
  assert.equal(run.lastAgent.name, "Lisbon");
});

test("403 model", async () => {
  const model = new OpenAIResponsesModel(client, "gpt-4-forbidden");
  await assert.rejects(runner.run(agent(model), "hello"), OpenAI.PermissionDeniedError);
});

test("429 over the key's rate", async () => {
  const model = new OpenAIResponsesModel(make("AID_ONE_RPM_KEY"), "gpt-4o");
  await runner.run(agent(model), "hello");
  await assert.rejects(runner.run(agent(model), "hello"), OpenAI.RateLimitError);
});
