package extproc_test

import (
	"context"
	"strings"
	"testing"

	"github.com/ai-identity/ai-identity/policy"
)

// Where there is no decision the log says why, once, and the caller does not learn it.
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
	if strings.Count(logs, "no decision, refusing") != 1 || !strings.Contains(logs, `level=WARN msg="no decision, refusing"`) || !strings.Contains(logs, `err="no policies"`) {
		t.Errorf("logged:\n%s", logs)
	}
}
