package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"
)

// reloadEvery is the interval at which files of keys and certificates are read again.
const reloadEvery = 5 * time.Second

// reloads reads files again while the process runs, so that certificates, tokens and keys
// can be replaced without a restart. Each file is read every reloadEvery and upon SIGHUP. If
// a file is not valid, the last valid one stays in use.
type reloads struct {
	log   *slog.Logger
	files []*reloaded
	hup   chan os.Signal

	total  *prometheus.CounterVec
	expiry *prometheus.GaugeVec
}

// reloaded is the file of a flag, or the files of a group of flags.
type reloaded struct {
	flag string
	read func() ([]byte, error) // returns all bytes that load depends on
	load func() (func(), error) // reads the file; the returned func puts it into use
	sum  [sha256.Size]byte      // digest of the file in use
	bad  string                 // the last error, so that it is logged once
}

func newReloads(reg prometheus.Registerer, log *slog.Logger) *reloads {
	r := &reloads{
		log: log, hup: make(chan os.Signal, 1),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aid_file_reloads_total", Help: "Reads of changed files, by flag and result (ok, failed). After a failed one, the last valid file stays in use.",
		}, []string{"flag", "result"}),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "aid_certificate_expiry_timestamp_seconds", Help: "Expiry of the certificate in a file that expires first, in Unix time.",
		}, []string{"flag"}),
	}
	reg.MustRegister(r.total, r.expiry)
	signal.Notify(r.hup, syscall.SIGHUP) // SIGHUP no longer ends the process
	return r
}

// add reads a file now, and then again when it changes.
func (r *reloads) add(flag string, read func() ([]byte, error), load func() (func(), error)) error {
	f := &reloaded{flag: flag, read: read, load: load}
	for _, result := range []string{"ok", "failed"} {
		r.total.WithLabelValues(flag, result)
	}
	use, err := f.load() // the error names the flags
	if err != nil {
		return err
	}
	b, err := f.read()
	if err != nil {
		return usagef("--%s: %v", flag, err)
	}
	use()
	f.sum = sha256.Sum256(b)
	r.files = append(r.files, f)
	return nil
}

// run reads until ctx is done.
func (r *reloads) run(ctx context.Context) error {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.hup:
			r.log.Info("SIGHUP: reading the files of keys and certificates again")
			r.check()
		case <-tick.C:
			r.check()
		}
	}
}

// check reads the files that have changed.
func (r *reloads) check() {
	for _, f := range r.files {
		b, err := f.read()
		if err == nil && sha256.Sum256(b) == f.sum {
			f.bad = ""
			continue
		}
		var use func()
		if err == nil {
			use, err = f.load()
		}
		if err != nil {
			if text := err.Error(); text != f.bad {
				f.bad = text
				r.total.WithLabelValues(f.flag, "failed").Inc()
				r.log.Error("a changed file is not valid: the last valid one stays in use", "flag", f.flag, "err", text)
			}
			continue
		}
		use()
		f.sum, f.bad = sha256.Sum256(b), ""
		r.total.WithLabelValues(f.flag, "ok").Inc()
		r.log.Info("a changed file is in use", "flag", f.flag)
	}
}

// all returns the bytes of files in order. It skips empty names.
func all(files map[string]audience, order ...string) ([]byte, error) {
	var out []byte
	for _, file := range order {
		if file == "" {
			continue
		}
		b, err := readTrusted(file, files[file])
		if err != nil {
			return nil, err
		}
		out = fmt.Appendf(out, "%d:", len(b))
		out = append(out, b...)
	}
	return out, nil
}

func (f tlsFiles) bytes() ([]byte, error) {
	return all(map[string]audience{f.cert: publicFile, f.ca: publicFile, f.key: secretFile}, f.cert, f.key, f.ca)
}

// server returns the TLS configuration of the listeners that other machines can reach. It
// always uses the current files. Without a certificate it returns nil.
func (r *reloads) server(f tlsFiles) (*tls.Config, error) {
	if f.cert == "" && f.key == "" {
		return nil, nil
	}
	var current atomic.Pointer[tls.Config]
	err := r.add("tls-cert", f.bytes, func() (func(), error) {
		c, err := f.server()
		if err != nil {
			return nil, usagef("%v", err)
		}
		return func() { current.Store(c); r.expires(f, c.Certificates) }, nil
	})
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: current.Load().NextProtos,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil },
	}, nil
}

// client returns the TLS credentials for the control plane. They always use the current files.
func (r *reloads) client(f tlsFiles, serverName string) (credentials.TransportCredentials, error) {
	c := &clientTLS{current: &atomic.Pointer[tls.Config]{}}
	err := r.add("tls-ca", f.bytes, func() (func(), error) {
		next, err := f.client(serverName)
		if err != nil {
			return nil, usagef("%v", err)
		}
		return func() { c.current.Store(next); r.expires(f, next.Certificates) }, nil
	})
	if err != nil {
		return nil, err
	}
	c.TransportCredentials = credentials.NewTLS(c.current.Load())
	return c, nil
}

// expires sets the metric with the expiry of certificates.
func (r *reloads) expires(f tlsFiles, pairs []tls.Certificate) {
	if len(pairs) > 0 && pairs[0].Leaf != nil {
		r.expiry.WithLabelValues("tls-cert").Set(float64(pairs[0].Leaf.NotAfter.Unix()))
	}
	if f.ca == "" {
		return
	}
	if first, err := firstExpiry(f.ca); err == nil {
		r.expiry.WithLabelValues("tls-ca").Set(float64(first.Unix()))
	}
}

// firstExpiry returns the earliest expiry of a file's certificates.
func firstExpiry(file string) (first time.Time, err error) {
	b, err := readTrusted(file, publicFile)
	if err != nil {
		return first, err
	}
	for _, der := range certificates(b) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return first, err
		}
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	if first.IsZero() {
		return first, errors.New("no certificate")
	}
	return first, nil
}

// clientTLS uses the current files for each new connection.
type clientTLS struct {
	credentials.TransportCredentials
	current *atomic.Pointer[tls.Config]
}

func (c *clientTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.current.Load()).ClientHandshake(ctx, authority, conn)
}

func (c *clientTLS) Clone() credentials.TransportCredentials {
	return &clientTLS{c.TransportCredentials.Clone(), c.current}
}

// token returns credentials that add the current join token of a file to each call.
func (r *reloads) token(file string) (credentials.PerRPCCredentials, error) {
	t := &joinTokens{}
	read := func() ([]byte, error) { return readTrusted(file, secretFile) }
	err := r.add("token-file", read, func() (func(), error) {
		s, err := readSecret(file)
		if err != nil {
			return nil, usagef("--token-file: %v", err)
		}
		return func() { t.current.Store(&s) }, nil
	})
	return t, err
}

// joinTokens adds the current token to calls. The check of the flags has made sure that the
// connection uses TLS or stays on this machine.
type joinTokens struct{ current atomic.Pointer[string] }

func (t *joinTokens) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + *t.current.Load()}, nil
}

func (t *joinTokens) RequireTransportSecurity() bool { return false }
