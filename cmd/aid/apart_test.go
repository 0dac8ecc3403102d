package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// doctor compares processes on other machines, and shows no key.
func TestDoctorApart(t *testing.T) {
	const key = "7f3b0c5e9a1d2846bb7c00112233445566778899aabbccddeeff001122334455"
	replica := func(keys []string, expiry float64, ready error) string {
		reg := registry()
		newKeyInfo(reg).set("hmac-keys", keys)
		at := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "aid_certificate_expiry_timestamp_seconds", Help: "x"}, []string{"flag"})
		reg.MustRegister(at)
		at.WithLabelValues("tls-cert").Set(expiry)
		s := httptest.NewServer(status(registered(reg, quiet), func(context.Context) error { return ready }))
		t.Cleanup(s.Close)
		return s.URL
	}
	const later = 4e9
	one := replica([]string{"1 " + key}, later, nil)
	same := replica([]string{"1 " + strings.ToUpper(key)}, later, nil)
	newer := replica([]string{"1 " + key, "2 " + strings.Repeat("ab", 32)}, later, nil)
	expired := replica([]string{"1 " + key}, 1e9, nil)
	red := replica([]string{"1 " + key}, later, errors.New("database: away"))
	// process is one with metrics of another version, or with a clock that is wrong by ahead.
	process := func(ahead time.Duration, metrics string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
			if r.URL.Path == "/metrics" {
				for line := range strings.Lines(metrics) {
					name, _, _ := strings.Cut(line, " ")
					name, _, _ = strings.Cut(name, "{")
					io.WriteString(w, "# TYPE "+name+" gauge\n"+line)
				}
			}
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	const built = `aid_build_info{version="`
	fast, slow := process(time.Hour, built+version()+"\"} 1\n"), process(-time.Hour, built+version()+"\"} 1\n")
	older := process(0, built+"v0.0.1\"} 1\n")
	behind := process(0, built+version()+"\"} 1\naid_audit_lag_records 412\naid_audit_lag_seconds 300\n")
	stale := process(0, built+version()+"\"} 1\naid_xds_client_staleness_seconds 120\n")
	rejecting := process(0, built+version()+"\"} 1\naid_xds_nacks_total 3\n")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"--control " + one + "," + same, 0, "all 2 control planes have the same keys"},
		{"--control " + one + "," + newer, 1, "have different keys in --hmac-keys"},
		{"--control " + expired, 1, "--tls-cert of " + expired + " has expired"},
		{"--control " + red, 1, red + " is not ready: database: away"},
		{"--extproc " + one, 0, one + " has 0 audit records to ship"},
		{"--control " + fast, 1, "the clock of " + fast + " differs from the clock of this machine by "},
		{"--extproc " + slow, 1, "the clock of " + slow + " differs from the clock of this machine by "},
		{"--control " + one + " --extproc " + older, 0, "v0.0.1 on " + older},
		{"--control " + one + " --extproc " + one, 0, "all processes are " + version()},
		{"--extproc " + behind, 1, behind + " has 412 audit records to ship; the oldest has waited for 5m0s"},
		{"--extproc " + stale, 1, stale + " has received nothing from a control plane for 2m0s"},
		{"--control " + rejecting, 0, "rejected 3 updates from " + rejecting},
		{"--control http://127.0.0.1:1", 1, "http://127.0.0.1:1 cannot be reached"},
		{"--envoy-admin /nonexistent.sock", 1, "is not live"},
		{"--control control-1.example.com", 2, "set a URL of --listen-status"},
		{"--xds control.example.com:18000", 2, "--tls-ca"},
	} {
		code, out, errs := play(t, append([]string{"doctor"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%s: %d\n%s%s", c.args, code, out, errs)
		}
		if strings.Contains(strings.ToLower(out+errs), key) {
			t.Errorf("%s shows a key", c.args)
		}
	}
	code, out, _ := play(t, "doctor", "--control", one+","+newer, "--json")
	var got struct{ Findings []finding }
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 {
		t.Fatalf("%d %v %s", code, err, out)
	}
	for _, f := range got.Findings {
		if (f.Level == "ok") != (f.Remedy == "") {
			t.Errorf("%+v", f)
		}
	}
}
