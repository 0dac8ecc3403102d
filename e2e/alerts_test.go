package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ai-identity/ai-identity/e2e"
	"github.com/ai-identity/ai-identity/envoy/envoytest"
)

// prometheusTool finds promtool or prometheus: in AID_PROMETHEUS_DIR, in make's folder, or
// in PATH. Without it the test is skipped, or fails in CI.
func prometheusTool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("AID_PROMETHEUS_DIR"), filepath.Join(e2e.Root(), ".tools", "prometheus", "usr", "bin")} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); dir != "" && err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%v: `make .tools/prometheus/.done` fetches it", err)
	} else if err != nil {
		t.Skipf("%v: `make .tools/prometheus/.done` fetches it", err)
	}
	return path
}

// rule is one alert of docs/alerts/aid.yml.
type rule struct{ alert, expr, summary string }

func alertRules(t *testing.T) (file string, rules []rule) {
	t.Helper()
	file = filepath.Join(e2e.Root(), "docs", "alerts", "aid.yml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "- alert: "); ok {
			rules = append(rules, rule{alert: name})
		} else if expr, ok := strings.CutPrefix(line, "expr: "); ok {
			rules[len(rules)-1].expr = expr
		} else if summary, ok := strings.CutPrefix(line, `annotations: {summary: "`); ok {
			rules[len(rules)-1].summary = strings.TrimSuffix(summary, `"}`)
		}
	}
	if len(rules) < 14 {
		t.Fatalf("%d rules", len(rules))
	}
	return file, rules
}

// firing is a series on which an alert fires. At first it is quiet: for ten minutes, or for
// as long as its values are.
type firing struct {
	alert, series string
	values        string // in promtool's notation, one for each minute
	at            string // when it fires; it does not in the ninth minute
}

const event, lasting = "0x10 1x60", "0x10 400x60"

var firings = []firing{
	{"AidRequestsNotRecorded", `aid_extproc_record_failures_total`, event, "12m"},
	{"AidAuditWriteFails", `aid_audit_write_failures_total`, event, "12m"},
	{"AidAuditNotShipped", `aid_audit_lag_seconds`, lasting, "20m"},
	{"AidAuditOrgStuck", `aid_audit_stuck_orgs`, event, "20m"},
	{"AidAuditOrgFull", `aid_audit_org_full_total`, event, "12m"},
	{"AidAuditGap", `aid_audit_gaps_total`, event, "12m"},
	{"AidAuditQuarantined", `aid_audit_quarantined_records`, event, "12m"},
	{"AidPartitionsFail", `aid_store_partition_failures_total`, event, "12m"},
	{"AidAuditMonthOverdue", `aid_audit_overdue_months`, "0x10 1x10200", "10150m"},
	{"AidNodeStale", `aid_xds_client_staleness_seconds`, lasting, "12m"},
	{"AidConfigurationRejected", `aid_xds_nacks_total`, event, "12m"},
	{"AidConfigurationRejected", `aid_xds_unpublished_total`, event, "12m"},
	{"AidConfigurationRejected", `aid_xds_client_rejected_total`, event, "12m"},
	{"AidCredentialNotOpened", `aid_xds_unopened`, event, "20m"},
	{"AidAuditKeyMissing", `aid_audit_chain_missing_epoch`, event, "12m"},
	{"AidAuditRolledBack", `aid_audit_rolled_back`, event, "12m"},
	{"AidAuditTreeDamaged", `aid_audit_trees_damaged`, event, "12m"},
	{"AidAuditChainBad", `aid_audit_chain_bad`, event, "12m"},
	{"AidAuditTreeBehind", `aid_audit_tree_lag_entries`, "0x10 200000x60", "20m"},
	{"AidCheckpointOld", `aid_audit_checkpoint_age_seconds`, lasting, "12m"},
	{"AidDirectoryOld", `aid_audit_directory_age_seconds`, lasting, "12m"},
	{"AidSigningFails", `aid_audit_signing_failures_total`, "0x10 5x60", "12m"},
	{"AidAnchorForged", `aid_audit_anchor_ignored_total`, event, "12m"},
	{"AidAnchorBehind", `aid_audit_anchor_lag_seconds`, lasting, "12m"},
	{"AidWitnessQuorum", `aid_audit_witnesses_missing`, event, "20m"},
	{"AidPanic", `aid_extproc_panics_total`, event, "12m"},
	{"AidPanic", `aid_extproc_protocol_errors_total`, event, "12m"},
	{"AidCredentialLeaked", `aid_extproc_credential_echoes_total`, event, "12m"},
	{"AidFileNotReloaded", `aid_file_reloads_total{flag="tls-cert",result="failed"}`, event, "12m"},
	{"AidCertificateExpires", `aid_certificate_expiry_timestamp_seconds{flag="tls-cert"}`, "1500x60", "16m"},
	{"AidAttestationsUnsigned", `aid_attestation_unsigned_seconds`, lasting, "20m"},
	{"AidReceiptMissing", `aid_api_missing_receipts_total`, event, "12m"},
	{"AidBudgetSpent", `aid_budget_thresholds_total{percent="100"}`, event, "12m"},
	{"AidBudgetOverrun", `aid_budget_overruns_total`, event, "12m"},
	{"AidBudgetChargesLost", `aid_budget_unmatched_total`, event, "12m"},
	{"AidBudgetChargesLost", `aid_budget_lapsed_total`, event, "12m"},
	{"AidBudgetStoreAway", `aid_budget_store_away_orgs`, event, "13m"},
	{"AidBudgetStoreCorrected", `aid_budget_store_corrected_nano_usd_total{direction="added"}`, event, "12m"},
	{"AidBudgetStoreCorrected", `aid_budget_store_corrected_nano_usd_total{direction="removed"}`, event, "12m"},
	{"AidBudgetCorrected", `aid_budget_corrected_nano_usd_total{direction="added"}`, event, "12m"},
	{"AidBudgetCorrected", `aid_budget_corrected_nano_usd_total{direction="removed"}`, event, "12m"},
	{"AidTieOutDiffers", `aid_tieout_differences_total{kind="missing"}`, event, "12m"},
	{"AidTieOutStuck", `aid_tieout_stuck`, event, "20m"},
	{"AidAccessLogLarge", `aid_tieout_log_bytes`, "0x10 600000000x60", "20m"},
	{"AidProcessDown", `up`, "1x10 0x60", "13m"},
	{"AidEnvoyOverloaded", `envoy_overload_envoy_overload_actions_stop_accepting_requests_active`, event, "12m"},
	{"AidEnvoyPassedUnjudged", `envoy_http_ext_proc_failure_mode_allowed{envoy_http_conn_manager_prefix="gateway"}`, event, "12m"},
}

var labelled = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)

// Each alert fires in its own situation, for each metric that it reads, and is quiet
// before. promtool evaluates the rules as Prometheus does.
func TestAlertsFire(t *testing.T) {
	promtool := prometheusTool(t, "promtool")
	file, rules := alertRules(t)
	if out, err := exec.Command(promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	type object = map[string]any
	var tests []object
	for _, r := range rules {
		for _, metric := range metricsOf(r.expr) {
			i := slices.IndexFunc(firings, func(f firing) bool { return f.alert == r.alert && nameOf(f.series) == metric })
			if i < 0 {
				t.Errorf("nothing fires %s by %s", r.alert, metric)
				continue
			}
			f := firings[i]
			labels := map[string]string{"severity": "page", "job": "aid-extproc", "instance": "node-1.example.com:9092"}
			var own []string
			for _, m := range labelled.FindAllStringSubmatch(f.series, -1) {
				labels[m[1]] = m[2]
				own = append(own, m[0]+",")
			}
			series := metric + "{" + strings.Join(own, "") + `job="aid-extproc",instance="node-1.example.com:9092"}`
			tests = append(tests, object{
				"interval": "1m", "name": r.alert + " by " + metric,
				"input_series": []object{{"series": series, "values": f.values}},
				"alert_rule_test": []object{
					{"eval_time": "9m", "alertname": r.alert, "exp_alerts": []object{}},
					{"eval_time": f.at, "alertname": r.alert, "exp_alerts": []object{{"exp_labels": labels, "exp_annotations": object{"summary": r.summary}}}},
				},
			})
		}
	}
	b, err := json.Marshal(object{"rule_files": []string{file}, "evaluation_interval": "1m", "tests": tests})
	if err != nil {
		t.Fatal(err)
	}
	written := filepath.Join(t.TempDir(), "tests.yml") // JSON is YAML
	if err := os.WriteFile(written, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "test", "rules", written).CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
}

var (
	metricNames = regexp.MustCompile(`\b(aid_[a-z_]+|envoy_[a-z_]+|up)\b`)
	quoted      = regexp.MustCompile(`"[^"]*"`)
)

func metricsOf(expr string) []string {
	return metricNames.FindAllString(quoted.ReplaceAllString(expr, ""), -1)
}

func nameOf(series string) string { name, _, _ := strings.Cut(series, "{"); return name }

// scraped checks that each series with an alert exists from the first scrape on, with its
// labels. So an alert is defined before its first event.
func (a *apart) scraped(t *testing.T) {
	t.Helper()
	var all strings.Builder
	for _, h := range []*host{a.controls[0], a.nodes[0]} {
		for _, path := range []string{"/metrics", "/metrics/envoy"} {
			text, err := h.get(path)
			if err != nil && (path == "/metrics" || h == a.nodes[0]) {
				t.Fatalf("%s%s: %v %s", h.name, path, err, text)
			}
			all.WriteString(text + "\n")
		}
	}
	for _, f := range firings {
		if f.series == "up" || strings.HasPrefix(f.series, "aid_budget_store_") {
			continue // from Prometheus itself, or from a sidecar with --redis
		}
		found := false
		for line := range strings.Lines(all.String()) {
			if rest, ok := strings.CutPrefix(line, nameOf(f.series)); !ok || rest[0] != '{' && rest[0] != ' ' {
				continue
			}
			has := true
			for _, m := range labelled.FindAllStringSubmatch(f.series, -1) {
				has = has && strings.Contains(line, m[0])
			}
			found = found || has
		}
		if !found {
			t.Errorf("%s is not in the first scrape", f.series)
		}
	}
}

// fires runs a real Prometheus with the page's scrape configuration and our rules. It
// scrapes all processes, with Envoy, and one fault fires its alert.
func (a *apart) fires(t *testing.T) {
	t.Helper()
	program := prometheusTool(t, "prometheus")
	file, _ := alertRules(t)
	if len(a.page["scrape"]) != 1 {
		t.Fatal("the page has no scrape configuration")
	}
	host := func(h *host) string { return strings.TrimPrefix(h.status, "http://") }
	config := strings.NewReplacer(
		"control-1.example.com:9091", host(a.controls[0]), "control-2.example.com:9091", host(a.controls[1]),
		"node-1.example.com:9092", host(a.nodes[0]), "node-2.example.com:9092", host(a.nodes[1]),
	).Replace(a.page["scrape"][0])
	config = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [" + file + "]\n" + config
	written := filepath.Join(a.dir, "prometheus.yml")
	if err := os.WriteFile(written, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", envoytest.Port(t))
	cmd := exec.Command(program, "--config.file="+written, "--storage.tsdb.path="+filepath.Join(a.dir, "tsdb"), "--web.listen-address="+address)
	said := &lines{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() //nolint:errcheck // it was killed
		if t.Failed() {
			t.Logf("Prometheus said:\n%s", said)
		}
	})
	ask := func(path string, out any) error {
		resp, err := http.Get("http://" + address + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		return json.NewDecoder(resp.Body).Decode(out)
	}
	e2e.Eventually(t, 60*time.Second, func() error {
		var up struct {
			Data struct{ Result []struct{ Value [2]any } }
		}
		if err := ask("/api/v1/query?query=up==1", &up); err != nil {
			return err
		}
		if n := len(up.Data.Result); n != 6 {
			return fmt.Errorf("%d of 6 are scraped", n)
		}
		return nil
	})
	fernet := filepath.Join(a.controls[1].etc, "fernet.keys")
	right, err := os.ReadFile(fernet)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fernet, []byte("no key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 60*time.Second, func() error {
		var got struct {
			Data struct {
				Alerts []struct {
					Labels map[string]string
					State  string
				}
			}
		}
		if err := ask("/api/v1/alerts", &got); err != nil {
			return err
		}
		for _, alert := range got.Data.Alerts {
			if alert.Labels["alertname"] != "AidFileNotReloaded" {
				t.Errorf("%v fires", alert.Labels)
			} else if alert.State == "firing" && alert.Labels["instance"] == host(a.controls[1]) && alert.Labels["flag"] == "fernet-keys" {
				return nil
			}
		}
		return errors.New("AidFileNotReloaded does not fire")
	})
	if err := os.WriteFile(fernet, right, 0o600); err != nil {
		t.Fatal(err)
	}
}
