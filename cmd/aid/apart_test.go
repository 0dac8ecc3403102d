package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

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
