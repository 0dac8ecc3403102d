package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/api"
	"github.com/ai-identity/ai-identity/policy"
)

// Bounds of `aid policy dry-run`.
const (
	dryRunAnswer = 2 * time.Minute // one response; a dry-run without a job is evaluated in it
	dryRunPoll   = time.Second
	dryRunBody   = 64 << 20 // bytes of a response
)

// dryRun is one run of `aid policy dry-run`.
type dryRun struct {
	file, window, replaces  string
	home, url, key          string
	rows                    int
	wait                    time.Duration
	asJSON, failOnChange    bool
	stdin                   io.Reader
	out, progress           io.Writer
	client                  *http.Client
	secret                  string
	sleep                   func(context.Context, time.Duration) error
	document, windowAsValue json.RawMessage
}

func policyDryRunCommand() *cobra.Command {
	d := dryRun{client: &http.Client{Timeout: dryRunAnswer}, sleep: pause}
	cmd := &cobra.Command{
		Use:   "dry-run --policy FILE [--window 24h]",
		Short: "Evaluate a policy on recorded requests, and show what it would change",
		Long: `dry-run asks the control plane to evaluate recorded requests twice: by today's policies
with yours among them, and by today's policies alone. It changes no policy.

The file has the body of POST /v1/policies. A policy with the same name is replaced in the
evaluation; --replaces names another one. The output counts the requests, by agent, and
lists those that would change, the oldest first.

NOW is the decision of today's policies, THEN the decision with yours. The last part has
what the dry-run cannot know. Many requests are evaluated by a job; its progress is on
stderr.

Without --url and --org-key-file, the command uses the ` + "`aid up`" + ` of --home.

Exit codes:
  0  the dry-run is done
  1  it failed, or the control plane does not respond
  2  the policy, a file or a flag is not valid
  3  with --fail-on-change, requests would change`,
		Example: `  aid policy dry-run --policy no-big-models.json
  aid policy dry-run --policy support.json --window 7d --rows 100

  # in CI: fail if yesterday's traffic would be decided otherwise
  aid policy dry-run --policy support.json --url https://aid.example.com --org-key-file ci.key --fail-on-change --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.stdin, d.out, d.progress = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := d.prepare(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), d.wait)
			defer cancel()
			return d.run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.file, "policy", "", "`file` with the policy, as JSON; - is stdin")
	f.StringVar(&d.window, "window", "24h", "how far back: hours or days such as 24h and 7d, or START/END with two RFC 3339 times")
	f.StringVar(&d.replaces, "replaces", "", "`id` of the policy that yours takes the place of (default: the one with the same name)")
	f.StringVar(&d.home, "home", ".aid", "`folder` of a running aid up; its API and its organization key are the defaults")
	f.StringVar(&d.url, "url", "", "`URL` of the management API")
	f.StringVar(&d.key, "org-key-file", "", "`file` with an organization key of the role admin")
	f.IntVar(&d.rows, "rows", 20, "the most requests to list, up to 20000")
	f.DurationVar(&d.wait, "timeout", 30*time.Minute, "the longest time to wait for the result")
	f.BoolVar(&d.failOnChange, "fail-on-change", false, "exit with 3 if the decision of a request would change")
	f.BoolVar(&d.asJSON, "json", false, "print JSON")
	return cmd
}

// prepare reads the files. Nothing is sent before all of them are valid.
func (d *dryRun) prepare() error {
	switch {
	case d.file == "":
		return usagef("--policy: say which policy, such as support.json, or - for stdin")
	case d.rows < 0 || d.rows > 20_000:
		return usagef("--rows %d: write 0 to 20000", d.rows)
	case d.wait <= 0:
		return usagef("--timeout %v: write a time such as 30m", d.wait)
	}
	b, err := readFile(d.stdin, d.file)
	if err != nil {
		return usagef("--policy: %v", err)
	}
	if err := policy.Check(b); err != nil {
		return usagef("%s: %v", d.file, err)
	}
	d.document = b
	var window any = d.window
	if start, end, ok := strings.Cut(d.window, "/"); ok {
		window = map[string]string{"start": start, "end": end}
	}
	if d.windowAsValue, err = json.Marshal(window); err != nil {
		return err
	}
	if d.url == "" {
		var e endpoints
		b, err := os.ReadFile(filepath.Join(d.home, "endpoints.json"))
		if err == nil {
			err = json.Unmarshal(b, &e)
		}
		if err != nil || e.API == "" {
			return usagef("--home %s: no `aid up` has used this folder; name the management API with --url", d.home)
		}
		d.url = e.API
	}
	if u, err := url.Parse(d.url); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return usagef("--url: write a URL such as https://aid.example.com")
	}
	if d.key == "" {
		d.key = filepath.Join(d.home, "org.key")
	}
	if d.secret, err = readSecret(d.key); err != nil {
		return usagef("--org-key-file: %v", err)
	}
	return nil
}

func (d *dryRun) run(ctx context.Context) error {
	body := map[string]any{"policy": d.document, "window": d.windowAsValue}
	if d.replaces != "" {
		body["replaces"] = d.replaces
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	var r api.DryRun
	if err := d.call(ctx, http.MethodPost, "/v1/policies/dry-run", b, &r); err != nil {
		return err
	}
	for r.State == "running" {
		if err := d.sleep(ctx, dryRunPoll); err != nil {
			return fmt.Errorf("the dry-run %s has not ended within --timeout %v: get it later with GET /v1/policy-dry-runs/%s", r.ID, d.wait, r.ID)
		}
		if err := d.call(ctx, http.MethodGet, "/v1/policy-dry-runs/"+r.ID+"?only=changes&limit=1", nil, &r); err != nil {
			return err
		}
		fmt.Fprintf(d.progress, "%d of about %d entries\n", r.Done, r.Total)
	}
	if r.State != "done" {
		return fmt.Errorf("the dry-run %s failed: %s", r.ID, r.Error)
	}
	rows := []api.DryRunRow{}
	for after := ""; len(rows) < d.rows; {
		var page api.DryRun
		if err := d.call(ctx, http.MethodGet, fmt.Sprintf("/v1/policy-dry-runs/%s?only=changes&limit=%d%s", r.ID, min(100, d.rows-len(rows)), after), nil, &page); err != nil {
			return err
		}
		rows, r.HasMore, r.Next = append(rows, page.Data...), page.HasMore, page.Next
		if !page.HasMore || page.Next == nil {
			break
		}
		after = "&after=" + *page.Next
	}
	r.Data = rows
	if err := d.print(r); err != nil {
		return err
	}
	if d.failOnChange && r.Counts.WouldChange > 0 {
		return &incompleteError{fmt.Errorf("%d requests would change", r.Counts.WouldChange)}
	}
	return nil
}

// call sends a request to the management API. A policy or a parameter that the API rejects
// is an error of usage.
func (d *dryRun) call(ctx context.Context, method, path string, body []byte, into *api.DryRun) error {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(d.url, "/")+path, bytes.NewReader(body))
	if err != nil {
		return usagef("--url: %v", err)
	}
	req.Header.Set("Authorization", "Bearer "+d.secret)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return fmt.Errorf("the management API does not respond: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, dryRunBody))
	if err != nil {
		return fmt.Errorf("the management API's response broke off: %w", err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		var e struct {
			Error struct{ Message, Field, Fix string }
		}
		if json.Unmarshal(b, &e) != nil || e.Error.Message == "" {
			return fmt.Errorf("%s is not a management API: it responds %s", d.url, resp.Status)
		}
		if said := e.Error.Message + " " + e.Error.Fix; resp.StatusCode == http.StatusUnprocessableEntity || resp.StatusCode == http.StatusNotFound {
			return usagef("%s", said)
		} else {
			return errors.New(said)
		}
	}
	*into = api.DryRun{}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s is not a management API: %w", d.url, err)
	}
	return nil
}

func (d *dryRun) print(r api.DryRun) error {
	if d.asJSON {
		return printJSON(d.out, r)
	}
	var b bytes.Buffer
	c := r.Counts
	as := "as a new policy"
	if r.Replaces != nil {
		as = "in place of " + *r.Replaces
	}
	fmt.Fprintf(&b, "%s to %s, %s\n\n", r.Start.Format(time.RFC3339), r.End.Format(time.RFC3339), as)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "AGENT\tREQUESTS\tALLOW\tDENY\tWOULD CHANGE")
	for _, a := range r.ByAgent {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\n", cell(a.AgentName, a.AgentID), a.Requests, a.Allow, a.Deny, a.WouldChange)
	}
	fmt.Fprintf(w, "all\t%d\t%d\t%d\t%d\n", c.Requests, c.Allow, c.Deny, c.WouldChange)
	w.Flush()
	if len(r.Data) > 0 {
		names := map[string]string{}
		for _, a := range r.ByAgent {
			names[a.AgentID] = a.AgentName
		}
		fmt.Fprintln(&b)
		fmt.Fprintln(w, "TIME\tREQUEST\tAGENT\tOPERATION\tMODEL\tNOW\tTHEN\tREASON")
		for _, row := range r.Data {
			reason := "-"
			if len(row.Reasons) > 0 {
				reason = row.Reasons[0].Reason
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Time.Format(time.RFC3339), cell(row.RequestID, "-"), cell(names[row.AgentID], row.AgentID),
				cell(row.Operation, "-"), cell(row.Model, "-"), row.Current, row.Decision, reason)
		}
		w.Flush()
		if r.HasMore {
			fmt.Fprintf(&b, "%d of %d requests that would change; --rows lists more\n", len(r.Data), c.WouldChange)
		}
	}
	fmt.Fprintln(&b, "\nNot known:")
	for _, l := range r.Limits {
		fmt.Fprintln(&b, "  "+l)
	}
	_, err := d.out.Write(b.Bytes())
	return err
}

// cell returns a text for a table, without characters that could change the terminal.
func cell(s, empty string) string {
	if s == "" {
		return empty
	}
	if q := fmt.Sprintf("%+q", s); q[1:len(q)-1] != s {
		return q
	}
	return s
}

// pause waits, or returns the error of ctx when it ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
