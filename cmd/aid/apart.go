package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/ai-identity/ai-identity/envoy"
)

// keyInfo exports the keys of a process as fingerprints, which do not reveal the keys.
// Replicas with different keys cannot verify or decrypt each other's data.
type keyInfo struct{ gauge *prometheus.GaugeVec }

func newKeyInfo(reg prometheus.Registerer) keyInfo {
	k := keyInfo{prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "aid_key_info", Help: "The keys in use, by flag, place (HMAC keys: the epoch, and @from=TIME if it has one) and fingerprint. All replicas must have the same values.",
	}, []string{"flag", "place", "fingerprint"})}
	version := version()
	built := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "aid_build_info", Help: "The version of this process."}, []string{"version"})
	reg.MustRegister(k.gauge, built)
	built.WithLabelValues(version).Set(1)
	return k
}

// set replaces the keys of a flag: the lines of its file.
func (k keyInfo) set(flag string, keys []string) {
	k.gauge.DeletePartialMatch(prometheus.Labels{"flag": flag})
	for i, line := range keys {
		place, key := strconv.Itoa(i+1), line
		if words := strings.Fields(line); flag == "hmac-keys" && len(words) > 1 {
			place, key = strings.Join(append(words[:1:1], words[2:]...), "@"), strings.ToLower(words[1])
		}
		k.gauge.WithLabelValues(flag, place, fingerprint(flag, key)).Set(1)
	}
}

// fingerprint identifies a key. A key has at least 16 random bytes, so it cannot be derived from it.
func fingerprint(flag, key string) string {
	m := hmac.New(sha256.New, []byte(key))
	io.WriteString(m, "aid key fingerprint "+flag) //nolint:errcheck // a hash returns no error
	return hex.EncodeToString(m.Sum(nil)[:8])
}

// apart are the processes on other machines that doctor checks.
type apart struct {
	controls, sidecars []string // URLs of --listen-status
	envoyAdmin         string
	xds, serverName    string
	files              tlsFiles
}

func (a apart) any() bool {
	return len(a.controls)+len(a.sidecars) > 0 || a.envoyAdmin != "" || a.xds != ""
}

// asked has the responses of one process.
type asked struct {
	url     string
	metrics map[string]*dto.MetricFamily
}

// checkApart queries each process, and compares the responses.
func (d *doctor) checkApart(ctx context.Context) {
	var controls, all []asked
	for _, url := range d.apart.controls {
		if p, ok := d.ask(ctx, "control", url); ok {
			controls, all = append(controls, p), append(all, p)
		}
	}
	for _, url := range d.apart.sidecars {
		if p, ok := d.ask(ctx, "extproc", url); ok {
			all = append(all, p)
			d.checkSidecar(p)
		}
	}
	for _, p := range all {
		d.checkExpiry(p)
		d.checkConfiguration(p)
	}
	d.checkVersions(all)
	d.checkKeys(controls)
	if d.apart.envoyAdmin != "" {
		d.checkEnvoyAdmin(ctx)
	}
	if d.apart.xds != "" {
		d.checkTLS(ctx)
	}
}

// ask reads /readyz, the clock and the metrics of a process.
func (d *doctor) ask(ctx context.Context, what, url string) (p asked, ok bool) {
	p.url = strings.TrimSuffix(url, "/")
	base, client := p.url, &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if path, unix := strings.CutPrefix(p.url, "unix:"); unix {
		base, client = "http://"+what, overUnix(path)
	}
	read := func(path string) (int, []byte, time.Time, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
		if err != nil {
			return 0, nil, time.Time{}, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, nil, time.Time{}, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
		at, _ := http.ParseTime(resp.Header.Get("Date"))
		return resp.StatusCode, b, at, err
	}
	began := time.Now()
	code, body, at, err := read("/readyz")
	took := time.Since(began)
	text := string(bytes.TrimSpace(body[:min(len(body), 500)]))
	switch {
	case err != nil:
		d.fail(what, fmt.Sprintf("%s cannot be reached: %v", url, err), "check that the process runs, and that this machine can reach its --listen-status address")
		return p, false
	case code == http.StatusNotFound:
		d.fail(what, url+" is not a status address: it has no /readyz", "give the URL of --listen-status, such as http://control-1.example.com:9091")
		return p, false
	case code != http.StatusOK:
		d.fail(what, fmt.Sprintf("%s is not ready: %s", url, text), "see docs/operations.md, When something fails, and the log of that process")
	case strings.Contains(text, "\n"):
		_, note, _ := strings.Cut(text, "\n")
		d.warn(what, fmt.Sprintf("%s is ready, with the note: %s", url, note), "check that the control planes run and that this process can reach them")
	default:
		d.ok(what, "%s is ready", url)
	}
	// Date has whole seconds.
	if skew := max(time.Until(at), began.Add(-time.Second).Sub(at)); !at.IsZero() && skew > 2*time.Second+took {
		d.fail("clock", fmt.Sprintf("the clock of %s differs from the clock of this machine by %v", url, skew.Round(time.Second)), "run chrony or systemd-timesyncd on both")
	}
	_, body, _, err = read("/metrics")
	if err == nil {
		parser := expfmt.NewTextParser(model.UTF8Validation)
		p.metrics, err = parser.TextToMetricFamilies(bytes.NewReader(body))
	}
	if err != nil {
		d.fail(what, fmt.Sprintf("the metrics of %s cannot be read: %v", url, err), "give the URL of --listen-status")
		return p, false
	}
	return p, true
}

// values returns a metric's samples: values by their labels.
func (p asked) values(name string) map[string]float64 {
	out := map[string]float64{}
	for _, m := range p.metrics[name].GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, l.GetValue())
		}
		out[strings.Join(labels, " ")] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	return out
}

func (p asked) sum(name string) (sum float64) {
	for _, v := range p.values(name) {
		sum += v
	}
	return sum
}

func (d *doctor) checkSidecar(p asked) {
	lag, old := p.sum("aid_audit_lag_records"), time.Duration(p.sum("aid_audit_lag_seconds"))*time.Second
	switch {
	case old > time.Minute:
		d.fail("backlog", fmt.Sprintf("%s has %.0f audit records to ship; the oldest has waited for %v", p.url, lag, old), "see the control plane's log and its database; the node rejects requests at --max-backlog")
	default:
		d.ok("backlog", "%s has %.0f audit records to ship", p.url, lag)
	}
	if stale := time.Duration(p.sum("aid_xds_client_staleness_seconds")) * time.Second; stale > staleAfter {
		d.fail("xds", fmt.Sprintf("%s has received nothing from a control plane for %v", p.url, stale), "check --xds, its name in DNS, and the certificate; at --max-staleness the node rejects all requests")
	}
}

// checkExpiry checks the certificates that a process uses.
func (d *doctor) checkExpiry(p asked) {
	for flag, at := range p.values("aid_certificate_expiry_timestamp_seconds") {
		left := time.Until(time.Unix(int64(at), 0))
		d.expiry(fmt.Sprintf("--%s of %s", flag, p.url), left)
	}
	if n := p.values("aid_file_reloads_total"); len(n) > 0 {
		for labels, count := range n {
			if flag, failed := strings.CutSuffix(labels, " failed"); failed && count > 0 {
				d.warn("files", fmt.Sprintf("%s could not read the changed file of --%s again, %.0f times", p.url, flag, count), "correct the file, unless a later line of its log has that the file is in use")
			}
		}
	}
}

func (d *doctor) expiry(what string, left time.Duration) {
	const remedy = "renew it; the file is read again within 5 s, without a restart"
	switch {
	case left <= 0:
		d.fail("tls", what+" has expired", remedy)
	case left < 24*time.Hour:
		d.warn("tls", fmt.Sprintf("%s expires in %v", what, left.Round(time.Minute)), remedy)
	default:
		d.ok("tls", "%s is valid for %d more days", what, int(left.Hours()/24))
	}
}

// checkConfiguration checks whether nodes accepted the published configuration.
func (d *doctor) checkConfiguration(p asked) {
	for name, text := range map[string]string{
		"aid_xds_nacks_total":           "Envoys and sidecars have rejected %.0f updates from %s since its start",
		"aid_xds_client_rejected_total": "%[2]s has rejected %.0[1]f updates since its start",
	} {
		if n := p.sum(name); n > 0 {
			d.warn("xds", fmt.Sprintf(text, n, p.url), "see the log of the control plane: it names the resource and the reason")
		}
	}
}

func (d *doctor) checkVersions(all []asked) {
	by := map[string][]string{}
	for _, p := range all {
		for v := range p.values("aid_build_info") {
			by[v] = append(by[v], p.url)
		}
	}
	if len(by) == 1 {
		for v := range by {
			d.ok("versions", "all processes are %s", v)
		}
		return
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, v+" on "+strings.Join(by[v], ", "))
	}
	if len(parts) > 0 {
		d.warn("versions", strings.Join(parts, "; "), "finish the rollout: control planes first, then nodes")
	}
}

// checkKeys compares the keys of the control planes, by their fingerprints.
func (d *doctor) checkKeys(controls []asked) {
	if len(controls) < 2 {
		return
	}
	different := false
	for _, p := range controls[1:] {
		one, other := controls[0].values("aid_key_info"), p.values("aid_key_info")
		flags := map[string]bool{}
		for labels := range one {
			if _, ok := other[labels]; !ok {
				flags[strings.Fields(labels)[1]] = true
			}
		}
		for labels := range other {
			if _, ok := one[labels]; !ok {
				flags[strings.Fields(labels)[1]] = true
			}
		}
		for _, flag := range slices.Sorted(maps.Keys(flags)) {
			different = true
			d.fail("keys", fmt.Sprintf("%s and %s have different keys in --%s", controls[0].url, p.url, flag), "copy the right file to both; it is read again within 5 s")
		}
	}
	if !different {
		d.ok("keys", "all %d control planes have the same keys", len(controls))
	}
}

func (d *doctor) checkEnvoyAdmin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := envoy.Admin(d.apart.envoyAdmin).Live(ctx); err != nil {
		d.fail("envoy", fmt.Sprintf("the Envoy of --envoy-admin %s is not live: %v", d.apart.envoyAdmin, err), "check that it runs, and that it gets its configuration (from --listen-xds of extproc): without it, Envoy opens no port")
		return
	}
	d.ok("envoy", "live (%s)", d.apart.envoyAdmin)
}

// checkTLS connects to the control plane as a node does.
func (d *doctor) checkTLS(ctx context.Context) {
	config, err := d.apart.files.client(cmp.Or(d.apart.serverName, hostOnly(d.apart.xds)))
	if err != nil {
		d.fail("tls", err.Error(), "correct the file of --tls-ca, or name another: it has the CA of the control planes' certificate")
		return
	}
	config.NextProtos = []string{"h2"}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", d.apart.xds)
	if err != nil {
		d.fail("tls", fmt.Sprintf("--xds %s: %v", d.apart.xds, err), "check the address and the CA (--tls-ca); the certificate must have the name in --xds or in --tls-server-name")
		return
	}
	defer conn.Close()
	d.expiry("the certificate of "+d.apart.xds, time.Until(conn.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter))
}

func hostOnly(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}
