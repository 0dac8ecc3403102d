package translate

import (
	"bytes"
	"net/netip"
	"regexp"
	"strings"
	"time"
)

// failure is an error in OpenAI's terms.
type failure struct {
	message, kind, code, param string
}

func (f failure) encode() []byte {
	var w writer
	w.b = append(w.b, `{"error":{`...)
	w.keyString("message", f.message)
	w.keyString("type", f.kind)
	for _, x := range []struct{ name, value string }{{"param", f.param}, {"code", f.code}} {
		if x.value == "" {
			w.keyRaw(x.name, []byte("null"))
		} else {
			w.keyString(x.name, x.value)
		}
	}
	w.b = append(w.b, "}}"...)
	return w.b
}

func unreadable(kind string) failure {
	return failure{message: Name(kind) + "'s response could not be read.", kind: "server_error", code: "unreadable_answer"}
}

// providerError reads the body of a response that is not a 2xx. A body that is not the
// provider's JSON comes from a server in between, and is not passed on.
func (a *Response) providerError(body []byte) failure {
	v, ok := parseLoosely(body)
	if ok && v.kind() == '[' { // a stream of Gemini's that was not requested as events
		for _, first := range v.elements() {
			v = first
			break
		}
	}
	f := failure{}
	if ok && v.kind() == '{' {
		f = a.words(v)
	}
	if f.message == "" {
		f.message = Name(a.req.Kind) + " responded with an error without a reason."
	}
	if a.status == 401 {
		// It is about the gateway's own key, and may quote the key.
		f.message = Name(a.req.Kind) + " did not accept the gateway's credential."
	}
	f.kind = typeOf(a.status)
	return f
}

// errorOf reports whether v, which came instead of a response, is an error.
func (a *Response) errorOf(v raw) (failure, bool) {
	is := v.get("error").given() || v.get("object").string() == "error" || v.get("type").string() == "error" ||
		a.req.Kind == Mistral && v.get("choices") == nil && (v.get("detail").given() || v.get("message").given())
	if !is {
		return failure{}, false
	}
	f := a.words(v)
	if f.message == "" {
		f.message = Name(a.req.Kind) + " ended its response with an error without a reason."
	}
	f.kind = "server_error"
	switch f.code {
	case "overloaded_error", "UNAVAILABLE":
	case "rate_limit_error", "RESOURCE_EXHAUSTED":
		f.kind = "rate_limit_error"
	case "invalid_request_error", "INVALID_ARGUMENT":
		f.kind = "invalid_request_error"
	}
	return f, true
}

// words returns the message and the provider's own code, from any of these places:
//
//	Anthropic  {"type":"error","error":{"type":…,"message":…}}
//	Gemini     {"error":{"code":429,"message":…,"status":…,"details":[…]}}
//	Cohere     {"id":…,"message":…}
//	Mistral    {"object":"error","message":…,"type":…,"param":…,"code":…}, {"detail":[{"loc":…,"msg":…}]}
func (a *Response) words(v raw) failure {
	e := v
	if inner := v.get("error"); inner.kind() == '{' {
		e = inner
	} else if inner.kind() == '"' {
		return failure{message: scrub(inner.string()), code: a.codeOf("", inner.string())}
	}
	message := e.get("message")
	detail := e.get("detail")
	if message.kind() == '{' {
		detail = message.get("detail")
	}
	f := failure{message: message.string()}
	if f.message == "" {
		switch detail.kind() {
		case '"':
			f.message = detail.string()
		case '[':
			var said []string
			for _, d := range detail.elements() {
				var at []string
				for _, l := range d.get("loc").elements() {
					if l.kind() == '"' {
						at = append(at, l.string())
					} else {
						at = append(at, string(l))
					}
				}
				said = append(said, strings.Join(at, ".")+": "+d.get("msg").string())
			}
			f.message = strings.Join(said, "; ")
		}
	}
	if f.param = scrub(e.get("param").string()); len(f.param) > 256 {
		f.param = ""
	}
	own := e.get("status").string()
	if own == "" {
		own = e.get("code").string()
	}
	if own == "" || a.req.Kind == Mistral {
		if t := e.get("type").string(); t != "" && t != "error" {
			own = t
		}
	}
	for _, d := range e.get("details").elements() {
		if s := d.get("retryDelay").string(); s != "" {
			if wait, err := time.ParseDuration(s); err == nil && wait > 0 {
				a.retryAfter = wait
			}
		}
	}
	f.code = a.codeOf(own, f.message)
	f.message = scrub(f.message)
	return f
}

// codeOf returns the provider's own code. Two errors get OpenAI's code, since frameworks
// look for it: a prompt that is too long, and a rate limit.
func (a *Response) codeOf(own, message string) string {
	lower := strings.ToLower(message)
	for _, s := range []string{"prompt is too long", "input token count", "too many tokens", "maximum context length", "context window"} {
		if strings.Contains(lower, s) && a.status != 429 {
			return "context_length_exceeded"
		}
	}
	switch {
	case a.status == 429:
		return "rate_limit_exceeded"
	case !isName(own) || scrub(own) != own:
		return ""
	}
	return own
}

func typeOf(status int) string {
	switch {
	case status == 401:
		return "authentication_error"
	case status == 403:
		return "permission_error"
	case status == 404:
		return "not_found_error"
	case status == 402:
		return "insufficient_quota"
	case status == 429:
		return "rate_limit_error"
	case status >= 500 || status == 499 || status < 400:
		return "server_error"
	}
	return "invalid_request_error"
}

var (
	keyLike = regexp.MustCompile(`(?i)\b(?:sk-[a-z0-9_*.\-]{6,}|AIza[a-z0-9_*\-]{8,}|AQ\.[a-z0-9_\-]{8,}|bearer\s+[a-z0-9._~+/=*\-]{8,}|(?:api[_-]?key|key|token)[=:]\s*"?[a-z0-9._\-*]{12,})`)
	hostURL = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://[^\s"'<>)\]]+`)
	address = regexp.MustCompile(`\[[0-9a-fA-F:]{2,}\](?::\d+)?|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b`)
	inHouse = regexp.MustCompile(`(?i)\b[a-z0-9.-]+\.(?:internal|local|localdomain|lan|corp|svc|cluster\.local)\b(?::\d+)?|\blocalhost(?::\d+)?`)
)

// scrub removes text from a message that looks like a key, an address or an internal host.
// A URL of public documentation is kept.
func scrub(message string) string {
	if len(message) > 8<<10 {
		message = strings.ToValidUTF8(message[:8<<10], "")
	}
	message = hostURL.ReplaceAllStringFunc(message, func(u string) string {
		_, rest, _ := strings.Cut(u, "://")
		host, _, _ := strings.Cut(rest, "/")
		host, _, _ = strings.Cut(host, "?")
		if strings.Contains(host, "@") || strings.Contains(host, ":") || !strings.Contains(host, ".") || inHouse.MatchString(host) || isAddress(host) {
			return "[url]"
		}
		return u
	})
	message = keyLike.ReplaceAllString(message, "[key]")
	message = address.ReplaceAllString(message, "[host]")
	return inHouse.ReplaceAllString(message, "[host]")
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(string(bytes.Trim([]byte(host), "[]")))
	return err == nil
}
