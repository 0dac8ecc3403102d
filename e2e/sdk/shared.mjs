// What the suites of the JavaScript clients share. See conftest.py.
export const baseURL = process.env.AID_GATEWAY;
export const text = "Hello! How can I help you today?";
export const question = "what is the weather in Lisbon";
export const result = "It is 21 degrees in Lisbon.";
export const schema = {
  type: "object",
  properties: { city: { type: "string" }, unit: { type: "string", enum: ["celsius", "fahrenheit"] } },
  required: ["city"],
};
export const key = (name = "AID_KEY") => process.env[name];

// The models of OpenAI's format: one of each kind of provider.
export const models = process.env.AID_CHAT_MODELS.split(",");
