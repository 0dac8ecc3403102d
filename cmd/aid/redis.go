package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/ai-identity/ai-identity/budget"
)

// redis are the flags of the store that sidecars share.
type redis struct {
	url, user, passwordFile string
	files                   tlsFiles
}

func (r *redis) flags(f *pflag.FlagSet) {
	f.StringVar(&r.url, "redis", "", "`URL` of a Redis or Valkey 7 or later that several sidecars share for limits. Write redis://host:port, or rediss:// for TLS. List more nodes of a cluster after commas (default: each sidecar counts its own)")
	f.StringVar(&r.user, "redis-user", "", "ACL user at --redis (default: the default user)")
	f.StringVar(&r.passwordFile, "redis-password-file", "", "`file` with the password for --redis")
	f.StringVar(&r.files.ca, "redis-ca", "", "PEM `file` of the CA of the certificate of --redis (default: the system's CAs)")
	f.StringVar(&r.files.cert, "redis-cert", "", "PEM `file` of the client certificate for --redis")
	f.StringVar(&r.files.key, "redis-key", "", "PEM `file` of the key of --redis-cert")
}

// check validates the flags.
func (r *redis) check() error {
	if r.url == "" {
		for flag, value := range map[string]string{
			"redis-user": r.user, "redis-password-file": r.passwordFile, "redis-ca": r.files.ca, "redis-cert": r.files.cert, "redis-key": r.files.key,
		} {
			if value != "" {
				return usagef("--%s without --redis: set --redis to the URL of the store, or leave --%s out", flag, flag)
			}
		}
		return nil
	}
	addresses, secure, err := budget.ParseStoreURL(r.url)
	switch {
	case err != nil:
		return usagef("--redis: %v", err)
	case r.user != "" && r.passwordFile == "":
		return usagef("--redis-user %s has no password: set --redis-password-file", r.user)
	case (r.files.cert == "") != (r.files.key == ""):
		return usagef("set both --redis-cert and --redis-key, or neither")
	case !secure && (r.files.ca != "" || r.files.cert != ""):
		return usagef("--redis %s has no TLS, so --redis-ca and --redis-cert are not used: write rediss://", r.url)
	}
	for _, a := range addresses {
		if !secure && !local(a) {
			return usagef("--redis %s: %s is not on this machine, and the connection has no TLS: write rediss://", r.url, a)
		}
	}
	return nil
}

// args are the flags for a child.
func (r *redis) args() (args []string) {
	if r.url == "" {
		return nil
	}
	return []string{
		"--redis", r.url, "--redis-user", r.user, "--redis-password-file", r.passwordFile,
		"--redis-ca", r.files.ca, "--redis-cert", r.files.cert, "--redis-key", r.files.key,
	}
}

// open returns the store, or nil without --redis.
func (r *redis) open(sums func() budget.SharedSums, files *reloads, reg prometheus.Registerer, log *slog.Logger) (*budget.Valkey, error) {
	if r.url == "" {
		return nil, nil
	}
	addresses, secure, err := budget.ParseStoreURL(r.url)
	if err != nil {
		return nil, usagef("--redis: %v", err)
	}
	c := budget.ValkeyConfig{Addresses: addresses, Username: r.user, Sums: sums(), Log: log, Registerer: reg}
	if secure {
		if c.TLS, err = r.tls(files); err != nil {
			return nil, err
		}
	}
	if r.passwordFile != "" {
		var password atomic.Pointer[string]
		read := func() ([]byte, error) { return readTrusted(r.passwordFile, secretFile) }
		err := files.add("redis-password-file", read, func() (func(), error) {
			s, err := readSecret(r.passwordFile)
			if err != nil {
				return nil, usagef("--redis-password-file: %v", err)
			}
			return func() { password.Store(&s) }, nil
		})
		if err != nil {
			return nil, err
		}
		c.Password = func() (string, error) { return *password.Load(), nil }
	}
	return budget.NewValkey(c)
}

// tls returns the current TLS configuration for each new connection.
func (r *redis) tls(files *reloads) (func() *tls.Config, error) {
	var current atomic.Pointer[tls.Config]
	err := files.add("redis-ca", r.files.bytes, func() (func(), error) {
		next := &tls.Config{MinVersion: tls.VersionTLS12} // managed stores may have no later one
		if r.files.ca != "" {
			roots, err := pool(r.files.ca)
			if err != nil {
				return nil, usagef("--redis-ca: %v", err)
			}
			next.RootCAs = roots
		}
		if r.files.cert != "" {
			pair, err := r.files.pair()
			if err != nil {
				return nil, usagef("--redis-cert and --redis-key: %v", err)
			}
			next.Certificates = []tls.Certificate{pair}
		}
		return func() { current.Store(next) }, nil
	})
	return current.Load, err
}

// unfit is the error of a store that is up and cannot be used. A store that is away is waited
// for.
func unfit(err error) error {
	if errors.Is(err, budget.ErrStoreUnfit) {
		return fmt.Errorf("--redis: %w", err)
	}
	return nil
}
