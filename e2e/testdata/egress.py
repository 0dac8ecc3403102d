"""The official SDKs with their defaults: no base URL, no proxy, no certificate in the code."""
import anthropic
import openai
from google import genai

hello = [{"role": "user", "content": "hello"}]

client = openai.OpenAI()
whole = client.chat.completions.create(model="gpt-4o", messages=hello)
assert whole.choices[0].message.content == "hello", whole
text = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(model="gpt-4o", messages=hello, stream=True) if c.choices)
assert text == "hello", text

message = anthropic.Anthropic().messages.create(model="claude-sonnet-4-20250514", max_tokens=16, messages=hello)
assert message.content[0].text == "hello", message

gemini = genai.Client()
answer = gemini.models.generate_content(model="gemini-2.5-pro", contents="hello")
assert answer.text == "hello", answer

print("all right")
