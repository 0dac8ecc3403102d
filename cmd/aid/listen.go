package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

// listen opens the address of a flag: "host:port", or "unix:/path" with mode 0600. It replaces
// the socket of an ended process. Errors name the flag and the fix.
func listen(ctx context.Context, flag, address string) (net.Listener, error) {
	var lc net.ListenConfig
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, usagef("--%s %q: set host:port, such as 127.0.0.1:8080, or unix:/path", flag, address)
		}
		l, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, busy(flag, address, err)
		}
		return l, nil
	}
	if err := checkSocketPath(path); err != nil {
		return nil, usagef("--%s: %v", flag, err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("--%s: another process serves %s; stop it, or choose another path", flag, path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("--%s: replacing the old socket: %w", flag, err)
	}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return l, nil
}

// busy converts the kernel's error about an address to an error with a fix.
func busy(flag, address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("--%s: %s is in use by another process; stop it, or choose another address with --%s (or %s)",
			flag, address, flag, variable(flag))
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("--%s: no permission to listen on %s; ports below 1024 need privileges: choose another with --%s",
			flag, address, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("--%s: %s is not an address of this machine", flag, address)
	}
	return fmt.Errorf("--%s: listening on %s: %w", flag, address, err)
}

// free returns an error if the address is in use. For port 0 it returns the port that the
// kernel chose.
func free(ctx context.Context, flag, address string) (string, error) {
	l, err := listen(ctx, flag, address)
	if err != nil {
		return "", err
	}
	defer l.Close()
	host, port, _ := net.SplitHostPort(address)
	if port != "0" {
		return address, nil
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return net.JoinHostPort(host, port), nil
}

// sun_path has room for 107 bytes and a NUL. The limit here is a little lower.
const maxSocketPath = 100

func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("socket path %q has %d bytes, and the limit is %d; choose a folder with a shorter path", path, len(path), maxSocketPath)
	}
	return nil
}

// local reports whether only this machine can reach the address.
func local(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// tlsFiles are the PEM files of a server or client.
type tlsFiles struct{ cert, key, ca string }

// pair reads the certificate and its key.
func (f tlsFiles) pair() (tls.Certificate, error) {
	cert, err := readTrusted(f.cert, publicFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readTrusted(f.key, secretFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

// server returns the TLS configuration of a listener that other machines can reach. A client
// certificate must be signed by ca.
func (f tlsFiles) server() (*tls.Config, error) {
	if f.cert == "" && f.key == "" {
		return nil, nil
	}
	pair, err := f.pair()
	if err != nil {
		return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
	if f.ca != "" {
		if c.ClientCAs, err = pool(f.ca); err != nil {
			return nil, fmt.Errorf("--tls-client-ca: %w", err)
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return c, nil
}

// client returns the TLS configuration for a server with a certificate signed by ca.
func (f tlsFiles) client(serverName string) (*tls.Config, error) {
	roots, err := pool(f.ca)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: serverName}
	if f.cert != "" {
		pair, err := f.pair()
		if err != nil {
			return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func pool(file string) (*x509.CertPool, error) {
	text, err := readTrusted(file, publicFile)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("no PEM certificate in %s", file)
	}
	return p, nil
}

// certificates returns the DER bytes of a PEM file's certificates.
func certificates(text []byte) (all [][]byte) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return all
		}
		if block.Type == "CERTIFICATE" {
			all = append(all, block.Bytes)
		}
	}
}

// serveHTTP serves h on l until ctx is done. Requests in flight then have a few seconds to
// end. Every timeout is set.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       60 * time.Second,
		WriteTimeout:      120 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(last); err != nil {
		s.Close()
	}
	return nil
}

// overUnix returns a client for an aid server on a Unix socket.
func overUnix(path string) *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			MaxIdleConns: 2, IdleConnTimeout: 30 * time.Second,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
		},
	}
}
