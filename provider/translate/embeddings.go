package translate

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strings"
)

// embed writes a request for embeddings with all texts. It requests the values as numbers,
// and base64 is made from them here.
func (t *translation) embed() {
	model := t.readModel()
	texts := t.readInputs()
	t.req.inputs = len(texts)
	_, dimensions, sized := t.takeWhole(&t.top, "dimensions")
	if v, ok := t.takeString(&t.top, "encoding_format"); ok {
		switch v.string() {
		case "float":
		case "base64":
			t.req.base64 = true
		default:
			t.invalid("encoding_format", "is neither float nor base64")
		}
	}
	var kind string
	if t.kind != Mistral {
		v, _ := t.takeString(&t.top, "input_type")
		kind = v.string()
	}
	w := &t.w
	switch t.kind {
	case Anthropic:
		t.refuse("input", "it has no embeddings")
		t.invalid("input", "cannot be sent to Anthropic, which has no embeddings")
	case Gemini:
		name, ok := t.geminiModel(model)
		if !ok {
			return
		}
		t.req.Path = "/" + t.geminiVersion() + "/" + name + ":batchEmbedContents"
		w.open('{')
		w.key("requests")
		w.open('[')
		for _, text := range texts {
			w.open('{')
			w.keyString("model", name)
			w.key("content")
			w.b = append(w.b, `{"parts":[{"text":`...)
			w.b = append(w.b, text...)
			w.b = append(w.b, "}]}"...)
			if kind != "" {
				w.keyString("taskType", geminiTask(kind))
			}
			if sized {
				w.keyRaw("outputDimensionality", dimensions)
			}
			w.close('}')
		}
		w.b = append(w.b, "]}"...)
	case Cohere:
		if kind == "" {
			kind = t.o.EmbeddingInputType
		}
		if kind == "" {
			kind = "search_document"
		}
		t.req.Path = "/v2/embed"
		w.open('{')
		w.keyString("model", model)
		w.keyString("input_type", kind)
		w.key("texts")
		w.list(texts)
		w.keyRaw("embedding_types", []byte(`["float"]`))
		if sized {
			w.keyRaw("output_dimension", dimensions)
		}
		w.close('}')
	case Mistral:
		t.req.Path = "/v1/embeddings"
		w.open('{')
		w.keyString("model", model)
		w.key("input")
		w.list(texts)
		if sized {
			w.keyRaw("output_dimension", dimensions)
		}
		w.close('}')
	}
}

func geminiTask(kind string) string {
	switch kind {
	case "search_document":
		return "RETRIEVAL_DOCUMENT"
	case "search_query":
		return "RETRIEVAL_QUERY"
	}
	return strings.ToUpper(kind)
}

func (t *translation) readInputs() []raw {
	v := t.top.take("input")
	var texts []raw
	switch v.kind() {
	case '"':
		texts = []raw{v}
	case '[':
		for _, x := range v.elements() {
			if x.kind() == '[' || x.isNumber() {
				// Another tokenizer has other tokens, so the field cannot be left out
				// either.
				t.cannot("input", "the tokens depend on OpenAI's tokenizers; send text")
				return nil
			}
			if x.kind() != '"' {
				t.invalid("input", "has an element that is not a string")
			}
			texts = append(texts, x)
		}
	}
	if len(texts) == 0 {
		t.invalid("input", "is neither a string nor an array of strings")
	}
	if b, ok := boundOf(t.kind, "input"); ok && float64(len(texts)) > b.to {
		t.cannot("input", b.why())
	}
	return texts
}

// embedded reads the response of a provider and writes OpenAI's.
func (a *Response) embedded(v raw) []byte {
	var w writer
	w.open('{')
	w.keyString("object", "list")
	w.key("data")
	w.open('[')
	n := int64(0)
	var id raw // OpenAI's response has none. Mistral's SDK requires it, also in OpenAI's format.
	one := func(values raw) {
		w.open('{')
		w.keyString("object", "embedding")
		w.keyInt("index", n)
		w.key("embedding")
		switch {
		case !a.req.base64 || values.kind() != '[':
			w.raw(values.compact())
		default:
			w.string(floats(values))
		}
		w.close('}')
		n++
	}
	switch a.req.Kind {
	case Gemini:
		for _, e := range v.get("embeddings").elements() {
			one(e.get("values"))
		}
		a.geminiUsage(v.get("usageMetadata"))
	case Cohere:
		for _, e := range v.get("embeddings", "float").elements() {
			one(e)
		}
		a.cohereUsage(v.get("meta"))
		a.usage.output = 0
	case Mistral:
		a.setModel(v.get("model"))
		for _, e := range v.get("data").elements() {
			one(e.get("embedding"))
		}
		a.openaiUsage(v.get("usage"))
		id = v.get("id")
	}
	if n != int64(a.req.inputs) {
		a.status, a.broken = 502, true
		return unreadable(a.req.Kind).encode()
	}
	w.close(']')
	if id.kind() == '"' {
		w.key("id")
		w.raw(id)
	}
	w.keyString("model", a.Model())
	if a.usage.known { // an unknown figure is not written as 0
		w.key("usage")
		w.open('{')
		w.keyInt("prompt_tokens", a.usage.input)
		w.keyInt("total_tokens", a.usage.input)
		w.close('}')
	}
	w.close('}')
	return w.b
}

// floats is an array of numbers as OpenAI's base64: float32, little-endian.
func floats(values raw) string {
	var b []byte
	for _, x := range values.elements() {
		f, _ := x.number()
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(f)))
	}
	return base64.StdEncoding.EncodeToString(b)
}
