package api_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/ai-identity/ai-identity/policy"
)

func TestTemplates(t *testing.T) {
	w := serve(t)
	got := w.want(200, "GET", "/v1/policy-templates", "")
	data := got.field("data").([]any)
	if len(data) != len(policy.Templates()) || data[0].(map[string]any)["fit"] != nil {
		t.Error(got.body)
	}
	nearest := func(query string) string {
		var l struct {
			Data []struct {
				ID  string
				Fit struct {
					Nearest   bool
					Permitted int
					Tools     []string `json:"tools_not_permitted"`
				}
			}
		}
		if err := json.Unmarshal([]byte(w.want(200, "GET", "/v1/policy-templates?"+query, "").body), &l); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(l.Data[0])
	}
	if got := nearest("operations=messages&tools=Edit,Bash,rm&models=claude-sonnet-4"); got != "{coding-assistant {true 3 [rm]}}" {
		t.Error(got)
	}
	// Its families are those of the product: an agent with web search does research.
	if got := nearest("tools=web_search_20250305"); got != "{research {true 1 []}}" {
		t.Error(got)
	}

	agent := w.want(201, "POST", "/v1/agents", `{"name":"bot"}`).field("id").(string)
	made := w.want(201, "POST", "/v1/policies/from-template", `{"template":"support","name":"s","state":"shadow","agents":["`+agent+`"],"tools":["kb.*"],"limits":{"rpm":5}}`)
	id := made.field("id").(string)
	stored := w.want(200, "GET", "/v1/policies/"+id, "")
	if fmt.Sprintf("%v %v %v %v", stored.field("conditions", "agent.id"), stored.field("conditions", "request.tool"), stored.field("limits"), stored.field("state")) != "map[in:["+agent+"]] map[glob:[kb.*]] map[rpm:5] shadow" {
		t.Error(stored.body)
	}
	w.want(200, "PATCH", "/v1/policies/"+id, `{"state":"enabled"}`)
	w.want(200, "GET", "/v1/policies/"+id+"/rego", "")

	w.want(409, "POST", "/v1/policies/from-template", `{"template":"support","name":"s","team":"x"}`)
	w.want(404, "POST", "/v1/policies/from-template", `{"template":"support","name":"t","agents":["ag_none"]}`)
	for body, field := range map[string]string{
		`{"template":"support","name":"t"}`:                                    "agents",
		`{"template":"suport","name":"t","team":"x"}`:                          "template",
		`{"template":"support","name":"t","team":"x","tools":["a?"]}`:          "tools.in[0]",
		`{"template":"support","name":"t","team":"x","limits":{"requests":1}}`: "limits.requests",
		`{"template":"support","name":"t","team":"x","tier":"gold"}`:           "tier",
		`{"template":"support","name":"\u0007","team":"x"}`:                    "name",
		`{"template":"support","name":"t","environment":"e","models":[""]}`:    "models.in[0]",
		`{"template":"support","name":"t","team":"x","state":"on"}`:            "state",
	} {
		if r := w.want(422, "POST", "/v1/policies/from-template", body); r.field("error", "field") != field {
			t.Errorf("%s: %s", body, r.body)
		}
	}
}
