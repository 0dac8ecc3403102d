package extproc_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
)

// If there is no decision, the log has the reason once, and the caller does not get it.
func TestNoDecisionIsLogged(t *testing.T) {
	w := serve(t, options{})
	w.dir.org.Policies = new(policy.Bundle)
	answer, pieces := ok()
	out := w.play(context.Background(), w.chat("small"), answer, pieces)
	client := render(out.client)
	if !strings.Contains(client, "policy_error") || strings.Contains(client, "no policies") {
		t.Errorf("the client was told:\n%s", client)
	}
	logs := w.logs.String()
	if strings.Count(logs, "no decision, request rejected") != 1 || !strings.Contains(logs, `level=WARN msg="no decision, request rejected"`) || !strings.Contains(logs, `err="no policies"`) {
		t.Errorf("logged:\n%s", logs)
	}
}

// A request that fails has one ERROR line, and no second one at its end. (FAULTS P13)
func TestOneErrorLine(t *testing.T) {
	for _, c := range []struct {
		name string
		want int
		edit func(w *world)
	}{
		{"a denial", 0, func(w *world) { w.dir.edit(func(c *identity.Caller) { c.Agent.Status = identity.Suspended }) }},
		{"no record", 1, func(w *world) {
			w.record.fail = func(string) (bool, error) { return false, errors.New("disk full") }
		}},
		{"a panic", 1, func(w *world) { w.record.fail = func(string) (bool, error) { panic("boom") } }},
		{"no directory", 0, func(w *world) { w.dir.err = errors.New("away") }},
	} {
		w := serve(t, options{})
		c.edit(w)
		answer, pieces := ok()
		w.play(context.Background(), w.chat("small"), answer, pieces)
		if err := w.server.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		if logs := w.logs.String(); strings.Count(logs, "level=ERROR") != c.want {
			t.Errorf("%s: want %d ERROR lines, logged:\n%s", c.name, c.want, logs)
		}
	}
}
