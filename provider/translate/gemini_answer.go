package translate

import "strings"

// geminiReason returns OpenAI's finish reason. An unknown reason, such as SAFETY, means
// that the response was withheld or changed.
func geminiReason(v raw, calls bool) (finish string, withheld bool) {
	switch v.string() {
	case "MAX_TOKENS":
		return "length", false
	case "STOP", "FINISH_REASON_UNSPECIFIED", "CONTINUATION", "FUNCTION_CALL": // the last is sent by compatible servers
		if calls {
			return "tool_calls", false
		}
		return "stop", false
	}
	return "content_filter", true
}

// geminiEvent reads a complete response or a chunk of one: they have one form.
func (a *Response) geminiEvent(v raw) {
	var candidates, feedback raw
	for name, x := range v.members() {
		switch string(name) {
		case "candidates":
			candidates = x
		case "promptFeedback":
			feedback = x
		case "usageMetadata":
			a.geminiUsage(x)
		case "modelVersion":
			a.setModel(x)
		case "responseId":
			a.setID(x)
		}
	}
	for i, c := range candidates.elements() {
		if a.excess {
			return
		}
		a.geminiCandidate(i, c)
	}
	if reason := feedback.get("blockReason"); reason.given() && len(a.replies) == 0 {
		why := feedback.get("blockReasonMessage").string()
		if why == "" {
			why = "The prompt was blocked: " + reason.string() + "."
		}
		r := a.reply(0)
		a.refuse(r, scrub(why))
		a.finish(r, "content_filter")
	}
}

// geminiUsage reads the figures, which are totals in every chunk of a stream.
func (a *Response) geminiUsage(u raw) {
	var prompt, tool, said, thought, cached int64
	found := false
	for name, v := range u.members() {
		n, ok := v.whole()
		if !ok {
			continue
		}
		switch string(name) {
		case "promptTokenCount":
			prompt = n
		case "toolUsePromptTokenCount":
			tool = n
		case "candidatesTokenCount":
			said = n
		case "thoughtsTokenCount":
			thought = n
		case "cachedContentTokenCount":
			cached = n
		default:
			continue
		}
		found = true
	}
	if found {
		a.usage = usage{input: prompt + tool, output: said + thought, cached: cached, reasoning: thought, known: true}
	}
}

func (a *Response) geminiCandidate(i int, c raw) {
	index := int64(i)
	var content, reason, why, odds raw
	for name, x := range c.members() {
		switch string(name) {
		case "index":
			if n, ok := x.whole(); ok && n >= 0 && n < 1024 {
				index = n
			}
		case "content":
			content = x
		case "finishReason":
			reason = x
		case "finishMessage":
			why = x
		case "logprobsResult":
			odds = geminiOdds(x)
		case "citationMetadata", "groundingMetadata", "urlContextMetadata":
			if x.given() && len(x.compact()) > 2 {
				a.lose(string(name))
			}
		}
	}
	r := a.reply(index)
	a.begin(r)
	if odds != nil {
		if a.form == streamForm {
			a.odds = odds
		} else {
			r.odds = append(r.odds, odds)
		}
	}
	for _, p := range content.get("parts").elements() {
		a.geminiAnswerPart(r, p)
	}
	if a.odds != nil { // there was no text for them
		a.open(r)
		a.shut("")
	}
	if !reason.given() {
		return
	}
	finish, withheld := geminiReason(reason, len(r.calls) > 0)
	if withheld {
		said := why.string()
		if said == "" {
			said = "The response was stopped: " + strings.ReplaceAll(reason.string(), "_", " ") + "."
		}
		a.refuse(r, scrub(said))
	}
	a.finish(r, finish)
}

func (a *Response) geminiAnswerPart(r *reply, p raw) {
	var text, call, signature raw
	thought := false
	for name, x := range p.members() {
		switch string(name) {
		case "text":
			text = x
		case "thought":
			thought = x.isTrue()
		case "functionCall":
			call = x
		case "thoughtSignature":
			signature = x
		case "partMetadata", "videoMetadata", "mediaResolution":
		default:
			a.lose(string(name))
		}
	}
	switch {
	case call.kind() == '{':
		args := call.get("args")
		if args.kind() != '{' {
			args = raw("{}")
		}
		a.call(r, a.toolID(call.get("id")), call.get("name"), signature, quote(nil, args.compact()))
		return
	case thought:
		a.think(r, text)
	default:
		a.text(r, text)
	}
	a.sign(r, signature)
}

// geminiOdds turns log probabilities into OpenAI's list.
func geminiOdds(v raw) raw {
	var w writer
	w.open('[')
	var tops []raw
	for _, t := range v.get("topCandidates").elements() {
		tops = append(tops, t.get("candidates"))
	}
	for i, c := range v.get("chosenCandidates").elements() {
		w.open('{')
		geminiToken(&w, c)
		w.key("top_logprobs")
		w.open('[')
		if i < len(tops) {
			for _, t := range tops[i].elements() {
				w.open('{')
				geminiToken(&w, t)
				w.close('}')
			}
		}
		w.b = append(w.b, "]}"...)
	}
	if len(w.b) == 1 {
		return nil
	}
	w.close(']')
	return w.b
}

func geminiToken(w *writer, c raw) {
	token, p := c.get("token"), c.get("logProbability")
	if token.kind() != '"' {
		token = raw(`""`)
	}
	if !p.isNumber() {
		p = raw("0") // proto3 omits zeros
	}
	w.keyRaw("token", token)
	w.keyRaw("logprob", p)
	w.keyRaw("bytes", []byte("null"))
}
