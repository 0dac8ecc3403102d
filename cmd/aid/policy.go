package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Test, explain, evaluate and dry-run policies",
		Long: `test, explain and eval work on files, without a control plane and without a network. A
policy file has the body of POST /v1/policies, or a list of such bodies.
dry-run evaluates a policy on the requests that a control plane has recorded.`,
		Example: `  aid policy test policies/*_test.json
  aid policy dry-run --policy support.json --window 7d
  aid policy explain --policies support.json --input request.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(policyTestCommand(), policyExplainCommand(), policyEvalCommand(), policyDryRunCommand())
	return cmd
}

const inputHelp = `An input file has the input document of docs/policy.md. Set only the fields that differ
from the sample input. In the sample, an active agent and key may use every model and scope.
The request is chat.completions on Monday, 2026-01-05, at 12:00 UTC.`

func policyEvalCommand() *cobra.Command {
	var policies []string
	var input string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "eval --policies FILE --input FILE",
		Short: "Decide one request",
		Long: `eval decides one request by the policies of files.

` + inputHelp + `

Exit codes: 0 the request is allowed, 1 it is denied, 2 a file or a flag is not valid.`,
		Example: `  aid policy eval --policies support.json,baseline.json --input request.json
  echo '{"agent": {"team": "support"}}' | aid policy eval --policies support.json --input - --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ps, in, err := policiesAndInput(cmd, policies, input)
			if err != nil {
				return err
			}
			b, err := policy.Compile(cmd.Context(), ps)
			if err != nil {
				return usagef("%v", err)
			}
			d := b.Decide(cmd.Context(), in)
			if err := printDecision(cmd.OutOrStdout(), d, ps, asJSON); err != nil {
				return err
			}
			if d.Effect != policy.Allow {
				return errors.New("the request is denied")
			}
			return nil
		},
	}
	policyFlags(cmd, &policies, &input, &asJSON)
	return cmd
}

func policyExplainCommand() *cobra.Command {
	var policies []string
	var input string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain --policies FILE --input FILE",
		Short: "Show why a request is allowed or denied, condition by condition",
		Long: `explain decides one request and lists, for each policy that governs it or matches it, the
conditions that fail.

` + inputHelp + `

Exit codes: 0 the request was decided, 2 a file or a flag is not valid.`,
		Example: `  aid policy explain --policies support.json --input request.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ps, in, err := policiesAndInput(cmd, policies, input)
			if err != nil {
				return err
			}
			x, err := policy.Explain(cmd.Context(), ps, in)
			if err != nil {
				return usagef("%v", err)
			}
			return printExplanation(cmd.OutOrStdout(), x, ps, asJSON)
		},
	}
	policyFlags(cmd, &policies, &input, &asJSON)
	return cmd
}

func policyFlags(cmd *cobra.Command, policies *[]string, input *string, asJSON *bool) {
	f := cmd.Flags()
	f.StringSliceVar(policies, "policies", nil, "`files` with policies, as JSON; several are separated by commas")
	f.StringVar(input, "input", "", "`file` with the input document, as JSON; - is stdin")
	f.BoolVar(asJSON, "json", false, "print JSON")
}

func policiesAndInput(cmd *cobra.Command, files []string, input string) ([]policy.Policy, policy.Input, error) {
	if input == "" {
		return nil, policy.Input{}, usagef("--input: say which request, such as request.json, or - for stdin")
	}
	if len(files) == 0 {
		return nil, policy.Input{}, usagef("--policies: say which policies, such as support.json")
	}
	ps, err := readPolicies(files)
	if err != nil {
		return nil, policy.Input{}, err
	}
	b, err := readFile(cmd.InOrStdin(), input)
	if err != nil {
		return nil, policy.Input{}, usagef("--input: %v", err)
	}
	in, err := policy.ReadInput(b, provider.ToolFamilies)
	if err != nil {
		return nil, policy.Input{}, usagef("%s: %v", input, err)
	}
	return inOrg(ps, in.Org.ID), in, nil
}

// maxPolicyFile bounds a file that is read whole.
const maxPolicyFile = 16 << 20

func readFile(stdin io.Reader, name string) ([]byte, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		stdin = f
	}
	b, err := io.ReadAll(io.LimitReader(stdin, maxPolicyFile+1))
	if err == nil && len(b) > maxPolicyFile {
		err = fmt.Errorf("%s is larger than %d MiB", name, maxPolicyFile>>20)
	}
	return b, err
}

// readPolicies reads the policies of files. Their ids are pol_1, pol_2, … in that order.
func readPolicies(files []string) (ps []policy.Policy, err error) {
	for _, file := range files {
		b, err := readFile(nil, file)
		if err != nil {
			return nil, usagef("%v", err)
		}
		docs := []json.RawMessage{b}
		if t := bytes.TrimSpace(b); len(t) > 0 && t[0] == '[' {
			if err := json.Unmarshal(b, &docs); err != nil {
				return nil, usagef("%s: %v", file, err)
			}
		}
		for i, doc := range docs {
			if err := policy.Check(doc); err != nil {
				at := file
				if len(docs) > 1 {
					at += fmt.Sprintf(", policy %d", i+1)
				}
				return nil, usagef("%s: %v", at, err)
			}
			var named struct{ Name string }
			if err := json.Unmarshal(doc, &named); err != nil {
				return nil, usagef("%s: %v", file, err)
			}
			ps = append(ps, policy.Policy{ID: "pol_" + strconv.Itoa(len(ps)+1), Name: named.Name, Version: 1, Document: doc})
		}
	}
	return ps, nil
}

func inOrg(ps []policy.Policy, org string) []policy.Policy {
	ps = slices.Clone(ps)
	for i := range ps {
		ps[i].OrgID = org
	}
	return ps
}

// policyTests is a file of tests.
type policyTests struct {
	Policies []string     `json:"policies"` // files, relative to the file of tests
	Tests    []policyTest `json:"tests"`
}

type policyTest struct {
	Name  string          `json:"name"`
	Input json.RawMessage `json:"input"`
	Want  struct {
		Effect   string    `json:"effect"`   // "allow" or "deny"
		Reasons  *[]string `json:"reasons"`  // codes, all of them in any order; nil: any
		Policies *[]string `json:"policies"` // names of the policies that the decision rests on; nil: any
	} `json:"want"`
}

type policyTestResult struct {
	File    string   `json:"file"`
	Name    string   `json:"name"`
	Pass    bool     `json:"pass"`
	Problem string   `json:"problem,omitempty"`
	Effect  string   `json:"effect"`
	Reasons []string `json:"reasons"`
}

func policyTestCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test FILE…",
		Short: "Run tests of policies",
		Long: `test runs the tests of files. Each file names its policies:

  {
    "policies": ["support.json"],
    "tests": [
      {
        "name": "support may read",
        "input": {"agent": {"team": "support"}, "request": {"tools": ["crm.read"]}},
        "want": {"effect": "allow"}
      },
      {
        "name": "and may not refund",
        "input": {"agent": {"team": "support"}, "request": {"tools": ["billing.refund"]}},
        "want": {"effect": "deny", "reasons": ["not_permitted"], "policies": ["support"]}
      }
    ]
  }

Paths of policies are relative to the file. "reasons" has the codes of all reasons, and
"policies" the names of the policies that the decision rests on. Leave out what you do not
test.

` + inputHelp + `

Exit codes: 0 all tests pass, 1 some test fails, 2 a file or a flag is not valid.`,
		Example: `  aid policy test policies/*_test.json
  aid policy test support_test.json --json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			var results []policyTestResult
			for _, file := range files {
				rs, err := testPolicies(cmd.Context(), file)
				if err != nil {
					return err
				}
				results = append(results, rs...)
			}
			return printTests(cmd.OutOrStdout(), results, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func testPolicies(ctx context.Context, file string) ([]policyTestResult, error) {
	b, err := readFile(nil, file)
	if err != nil {
		return nil, usagef("%v", err)
	}
	var tests policyTests
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&tests); err != nil {
		return nil, usagef("%s is not a file of tests: %v; see `aid policy test --help`", file, err)
	}
	if len(tests.Policies) == 0 || len(tests.Tests) == 0 {
		return nil, usagef("%s has no policies or no tests; see `aid policy test --help`", file)
	}
	for i, p := range tests.Policies {
		if !filepath.IsAbs(p) {
			tests.Policies[i] = filepath.Join(filepath.Dir(file), p)
		}
	}
	ps, err := readPolicies(tests.Policies)
	if err != nil {
		return nil, err
	}
	bundles := map[string]*policy.Bundle{} // by org
	var results []policyTestResult
	for i, test := range tests.Tests {
		at := fmt.Sprintf("%s: test %d", file, i+1)
		if test.Name == "" {
			return nil, usagef("%s has no name", at)
		}
		if test.Want.Effect != "allow" && test.Want.Effect != "deny" {
			return nil, usagef("%s (%s): want.effect is %q: write allow or deny", at, test.Name, test.Want.Effect)
		}
		if len(test.Input) == 0 {
			test.Input = json.RawMessage("{}")
		}
		in, err := policy.ReadInput(test.Input, provider.ToolFamilies)
		if err != nil {
			return nil, usagef("%s (%s): %v", at, test.Name, err)
		}
		b := bundles[in.Org.ID]
		if b == nil {
			if b, err = policy.Compile(ctx, inOrg(ps, in.Org.ID)); err != nil {
				return nil, usagef("%s: %v", file, err)
			}
			bundles[in.Org.ID] = b
		}
		d := b.Decide(ctx, in)
		r := policyTestResult{File: file, Name: test.Name, Effect: d.Effect.String(), Reasons: reasonCodes(d)}
		want := test.Want
		rested := policyNames(d.PolicyIDs, ps)
		switch {
		case r.Effect != want.Effect:
			r.Problem = fmt.Sprintf("the effect is %s, not %s", r.Effect, want.Effect)
			if len(r.Reasons) > 0 {
				r.Problem += " (" + strings.Join(r.Reasons, ", ") + ")"
			}
		case want.Reasons != nil && !sameTexts(*want.Reasons, r.Reasons):
			r.Problem = fmt.Sprintf("the reasons are %q, not %q", r.Reasons, *want.Reasons)
		case want.Policies != nil && !sameTexts(*want.Policies, rested):
			r.Problem = fmt.Sprintf("the policies are %q, not %q", rested, *want.Policies)
		}
		r.Pass = r.Problem == ""
		results = append(results, r)
	}
	return results, nil
}

func sameTexts(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func reasonCodes(d policy.Decision) []string {
	codes := []string{}
	for _, r := range d.Reasons {
		codes = append(codes, r.Code)
	}
	return codes
}

func policyNames(ids []string, ps []policy.Policy) []string {
	names := []string{}
	for _, id := range ids {
		for _, p := range ps {
			if p.ID == id {
				names = append(names, p.Name)
			}
		}
	}
	return names
}

func printTests(out io.Writer, results []policyTestResult, asJSON bool) error {
	failed := 0
	for _, r := range results {
		if !r.Pass {
			failed++
		}
	}
	if asJSON {
		if err := printJSON(out, results); err != nil {
			return err
		}
	} else {
		for _, r := range results {
			line := "ok    " + r.Name
			if !r.Pass {
				line = "FAIL  " + r.Name + ": " + r.Problem
			}
			if _, err := fmt.Fprintln(out, line); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(out, "%d tests, %d failed\n", len(results), failed); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d tests failed", failed, len(results))
	}
	return nil
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type shownReason struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Policy  string `json:"policy,omitempty"`
}

type shownDecision struct {
	Effect   string        `json:"effect"`
	Reasons  []shownReason `json:"reasons"`
	Policies []string      `json:"policies"`
}

func shown(d policy.Decision, ps []policy.Policy) shownDecision {
	s := shownDecision{Effect: d.Effect.String(), Reasons: []shownReason{}, Policies: policyNames(d.PolicyIDs, ps)}
	for _, r := range d.Reasons {
		s.Reasons = append(s.Reasons, shownReason{r.Code, r.Message, strings.Join(policyNames([]string{r.PolicyID}, ps), "")})
	}
	return s
}

func printDecision(out io.Writer, d policy.Decision, ps []policy.Policy, asJSON bool) error {
	s := shown(d, ps)
	if asJSON {
		return printJSON(out, s)
	}
	if _, err := fmt.Fprintln(out, s.Effect); err != nil {
		return err
	}
	for _, r := range s.Reasons {
		if _, err := fmt.Fprintf(out, "  %s: %s\n", r.Code, r.Message); err != nil {
			return err
		}
	}
	if len(s.Policies) > 0 {
		_, err := fmt.Fprintf(out, "  policies: %s\n", strings.Join(s.Policies, ", "))
		return err
	}
	return nil
}

type shownCondition struct {
	Condition string `json:"condition"`
	Unknown   bool   `json:"unknown"`
	Value     any    `json:"value"`
}

type shownPolicy struct {
	Name    string           `json:"name"`
	Effect  string           `json:"effect"`
	State   string           `json:"state"`
	Governs bool             `json:"governs"`
	Matches bool             `json:"matches"`
	Failed  []shownCondition `json:"failed"`
}

func printExplanation(out io.Writer, x policy.Explanation, ps []policy.Policy, asJSON bool) error {
	policies := []shownPolicy{}
	for _, e := range x.Policies {
		s := shownPolicy{Name: e.Name, Effect: e.Effect, State: string(e.State), Governs: e.Governs, Matches: e.Matches, Failed: []shownCondition{}}
		for _, f := range e.Failed {
			s.Failed = append(s.Failed, shownCondition{f.Path, f.Unknown, f.Value})
		}
		policies = append(policies, s)
	}
	if asJSON {
		return printJSON(out, struct {
			Decision shownDecision `json:"decision"`
			Policies []shownPolicy `json:"policies"`
		}{shown(x.Decision, ps), policies})
	}
	if err := printDecision(out, x.Decision, ps, false); err != nil {
		return err
	}
	for _, p := range policies {
		state := ""
		if p.State != string(policy.Enabled) {
			state = ", " + p.State
		}
		does := "matches"
		if !p.Matches {
			does = "governs, and does not match"
		}
		if _, err := fmt.Fprintf(out, "\n%s (%s%s) %s\n", p.Name, p.Effect, state, does); err != nil {
			return err
		}
		for _, f := range p.Failed {
			value, err := json.Marshal(f.Value)
			if err != nil {
				return err
			}
			is := "is false: the value is " + string(value)
			if f.Value == nil {
				is = "is unknown: the request has no such attribute"
			} else if f.Unknown {
				is = "is unknown: the value is " + string(value) + ", of another type"
			}
			if _, err := fmt.Fprintf(out, "  %s %s\n", f.Condition, is); err != nil {
				return err
			}
		}
	}
	return nil
}
