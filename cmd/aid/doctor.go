package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ai-identity/ai-identity/envoy"
)

func doctorCommand() *cobra.Command {
	var d doctor
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine or processes on other machines, and print remedies",
		Long: `doctor checks what ` + "`aid up`" + ` and the servers need, and changes nothing. For each
fault it prints a remedy.

With --control, --extproc, --envoy-admin or --xds it checks processes on other machines:

  - Each can be reached and is ready.
  - Certificates do not expire soon, clocks agree, and versions are the same.
  - All control planes have the same keys (it compares fingerprints, not keys).
  - Audit records do not wait, and no configuration was rejected.

With --postgres it also checks the database and its schema.

Exit codes: 0 no fault (warnings are printed); 1 a fault; 2 wrong usage.`,
		Example: `  aid doctor
  AID_POSTGRES=postgres://aid_app@db.example.com/aid?sslmode=verify-full aid doctor

  # processes that run apart: their --listen-status addresses
  aid doctor --control http://control-1.example.com:9091,http://control-2.example.com:9091 \
      --extproc http://node-1.example.com:9092 --xds control.example.com:18000 --tls-ca ca.crt

  # on a node, for a program to read
  aid doctor --extproc http://127.0.0.1:9092 --envoy-admin /run/aid/envoy.sock --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.home, "home", ".aid", "`folder` of the state of aid up")
	f.StringVar(&d.envoy, "envoy", "", "`path` of Envoy (default: the one that make installed, then PATH)")
	f.StringVar(&d.postgres, "postgres", "", "database `URL` (default: the embedded one)")
	f.StringVar(&d.postgresDir, "postgres-dir", "", "`folder` of the Postgres that is embedded (default: the one that make installed)")
	f.StringVar(&d.gateway, "gateway", defaultGateway, "`address` of the gateway")
	f.StringVar(&d.api, "api", defaultAPI, "`address` of the management API")
	f.StringVar(&d.metrics, "metrics", defaultMetrics, "`address` of the metrics")
	f.StringSliceVar(&d.apart.controls, "control", nil, "`URLs` of control planes' --listen-status")
	f.StringSliceVar(&d.apart.sidecars, "extproc", nil, "`URLs` of sidecars' --listen-status, or unix:/path")
	f.StringVar(&d.apart.envoyAdmin, "envoy-admin", "", "Unix `socket` of Envoy's admin interface")
	f.StringVar(&d.apart.xds, "xds", "", "`address` where nodes reach the control planes, to check its TLS")
	f.StringVar(&d.apart.files.ca, "tls-ca", "", "PEM `file` of the CA of the control planes' certificate")
	f.StringVar(&d.apart.serverName, "tls-server-name", "", "name in the control planes' certificate (default: the host of --xds)")
	f.BoolVar(&d.json, "json", false, "print the findings as JSON")
	return cmd
}

type doctor struct {
	home, envoy, postgres, postgresDir, gateway, api, metrics string

	apart apart
	json  bool

	out      io.Writer
	findings []finding
	failed   int
}

// finding is the result of one check.
type finding struct {
	Level  string `json:"level"` // ok, warn, fail
	What   string `json:"what"`
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"`
}

func (d *doctor) run(ctx context.Context) error {
	if d.apart.xds != "" && d.apart.files.ca == "" {
		return usagef("--xds %s: set --tls-ca to the CA of the control planes", d.apart.xds)
	}
	for _, url := range append(slices.Clone(d.apart.controls), d.apart.sidecars...) {
		if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") && !strings.HasPrefix(url, "unix:/") {
			return usagef("--control and --extproc: %q: set a URL of --listen-status, such as http://control-1.example.com:9091", url)
		}
	}
	if !d.json {
		fmt.Fprintf(d.out, "aid %s\n", version())
	}
	if d.apart.any() {
		d.checkApart(ctx)
		if d.postgres != "" {
			d.checkDatabase(ctx)
		}
	} else {
		d.checkEnvoy(ctx)
		d.checkDatabase(ctx)
		d.checkClock()
		d.checkDisk()
		d.checkPorts(ctx)
	}
	if d.json {
		e := json.NewEncoder(d.out)
		e.SetIndent("", "  ")
		if err := e.Encode(map[string]any{"version": version(), "findings": d.findings}); err != nil {
			return err
		}
	}
	if d.failed > 0 {
		return fmt.Errorf("%d faults must be corrected", d.failed)
	}
	return nil
}

func (d *doctor) ok(what, format string, args ...any) {
	d.found(finding{"ok", what, fmt.Sprintf(format, args...), ""})
}

func (d *doctor) warn(what, problem, fix string) { d.found(finding{"warn", what, problem, fix}) }

func (d *doctor) fail(what, problem, fix string) {
	d.failed++
	d.found(finding{"fail", what, problem, fix})
}

func (d *doctor) found(f finding) {
	d.findings = append(d.findings, f)
	if d.json {
		return
	}
	level := f.Level
	if level == "fail" {
		level = "FAIL"
	}
	fmt.Fprintf(d.out, "%-5s %-9s %s\n", level, f.What, f.Found)
	if f.Remedy != "" {
		fmt.Fprintf(d.out, "                -> %s\n", f.Remedy)
	}
}

func (d *doctor) checkEnvoy(ctx context.Context) {
	const fix = "run `make setup`, or give an Envoy of at least " + envoy.MinVersion + " with --envoy"
	path, err := findEnvoy(d.envoy)
	if err != nil {
		d.fail("envoy", err.Error(), fix)
		return
	}
	v, err := envoy.Version(ctx, path)
	if err == nil {
		err = envoy.CheckVersion(v)
	}
	if err != nil {
		d.fail("envoy", err.Error(), fix)
		return
	}
	d.ok("envoy", "%s (%s)", v, path)
}

// findEnvoy returns the path that is set, or finds the Envoy beside this binary.
func findEnvoy(asked string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	return envoy.Find(asked, filepath.Dir(exe))
}

// With a wrong clock, keys expire at the wrong moment and entries have the wrong time.
func (d *doctor) checkClock() {
	var t syscall.Timex
	state, err := syscall.Adjtimex(&t)
	const staUnsync, timeError = 0x40, 5
	switch {
	case err != nil:
		d.warn("clock", "the kernel does not report whether the clock is synchronised: "+err.Error(), "make sure that chrony or systemd-timesyncd runs on the host")
	case state == timeError || t.Status&staUnsync != 0:
		d.warn("clock", "the kernel reports that the clock is not synchronised; it shows "+time.Now().UTC().Format(time.RFC3339), "run chrony or systemd-timesyncd (in a container: on the host)")
	default:
		d.ok("clock", "synchronised, within %v", time.Duration(t.Maxerror)*time.Microsecond)
	}
}

// The disk is on the request path: a request is forwarded only after its record is on disk.
func (d *doctor) checkDisk() {
	dir := d.home
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			break
		}
		up := filepath.Dir(dir)
		if up == dir {
			break
		}
		dir = up // the folder does not exist yet; its parent does
	}
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		d.fail("disk", err.Error(), "choose another folder with --home")
		return
	}
	free := int64(s.Bavail) * s.Bsize
	latency, err := fsyncLatency(dir)
	switch {
	case err != nil:
		d.fail("disk", fmt.Sprintf("writing in %s: %v", dir, err), "make the folder writable, or choose another with --home")
	case free < 256<<20:
		d.fail("disk", fmt.Sprintf("%d MB free in %s: when the disk is full, nothing can be recorded or forwarded", free>>20, dir), "free some space, or choose another folder with --home")
	case free < 2<<30:
		d.warn("disk", fmt.Sprintf("%d MB free in %s", free>>20, dir), "keep 2 GB free: audit entries wait here while the control plane is not available")
	case latency > 20*time.Millisecond:
		d.warn("disk", fmt.Sprintf("one fsync takes %v, and each request waits for one", latency), "put --home on a local SSD")
	default:
		d.ok("disk", "%d GB free, one fsync takes %v (%s)", free>>30, latency, dir)
	}
}

// fsyncLatency returns the median time to make one small record durable.
func fsyncLatency(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, ".aid-doctor-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	took := make([]time.Duration, 31)
	record := make([]byte, 700)
	for i := range took {
		began := time.Now()
		if _, err := f.Write(record); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[len(took)/2].Round(10 * time.Microsecond), nil
}

func (d *doctor) checkPorts(ctx context.Context) {
	if pid := runsOn(d.home); pid != "" {
		d.ok("ports", "not checked: `aid up` (process %s) runs on %s", pid, d.home)
		return
	}
	for _, p := range []struct{ flag, address string }{{"gateway", d.gateway}, {"api", d.api}, {"metrics", d.metrics}} {
		if _, err := free(ctx, p.flag, p.address); err != nil {
			d.fail("port", err.Error(), "`ss -ltnp` lists the processes that listen")
		} else {
			d.ok("port", "--%s %s is free", p.flag, p.address)
		}
	}
}
