package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// CA is the certificate authority for intercepted connections. Applications trust its roots.
// Its intermediate signs a leaf for each governed host and node. Both have constraints: only
// the governed hosts, and no IP address (RFC 5280, section 4.2.1.10).
type CA struct {
	roots        []*x509.Certificate // that applications should trust
	intermediate *x509.Certificate
	key          *ecdsa.PrivateKey // of the intermediate
	rand         io.Reader
}

// Lifetimes of certificates. An intermediate is replaced after half of its life, and a leaf too.
const (
	rootLife         = 10 * 365 * 24 * time.Hour
	intermediateLife = 90 * 24 * time.Hour
	LeafLife         = 24 * time.Hour
	backdate         = time.Hour // for clients with a slow clock
)

// CASealer encrypts the keys of the CA in the database.
type CASealer interface {
	Seal(b []byte) (string, error)
	Open(sealed string) ([]byte, error)
}

// ErrCAHosts means that the root may not certify one of the hosts.
var ErrCAHosts = errors.New("the egress CA does not cover a host")

// EnsureCA reads the CA of the installation, and creates what is missing. The first call makes the
// root. A new intermediate is made for other hosts, and when the last one is at half of its life.
// tx has no organization. Several control planes may call it at once: they wait for each other.
func EnsureCA(ctx context.Context, tx pgx.Tx, sealer CASealer, hosts []string, now time.Time, rand io.Reader) (*CA, error) {
	if len(hosts) == 0 {
		return nil, errors.New("the egress CA needs a host")
	}
	hosts = slices.Sorted(slices.Values(hosts))
	if _, err := tx.Exec(ctx, "LOCK TABLE egress_cas IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, "SELECT id, kind, parent, certificate, sealed, state FROM egress_cas WHERE state <> 'withdrawn' ORDER BY id")
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[caRow])
	if err != nil {
		return nil, err
	}
	ca := &CA{rand: rand}
	var root, last *caRow
	var rootCert *x509.Certificate // of root
	for i := range all {
		r := &all[i]
		if r.Kind == "intermediate" {
			last = r
			continue
		}
		c, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, fmt.Errorf("the egress CA's root %d: %w", r.ID, err)
		}
		ca.roots = append(ca.roots, c)
		if r.State == "signing" {
			root, rootCert = r, c
		}
	}
	open := func(r *caRow) (*x509.Certificate, *ecdsa.PrivateKey, error) {
		c, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, nil, err
		}
		der, err := sealer.Open(r.Sealed)
		if err != nil {
			return nil, nil, err
		}
		k, err := x509.ParseECPrivateKey(der)
		if err == nil && !k.PublicKey.Equal(c.PublicKey) {
			err = errors.New("the key is of another certificate")
		}
		return c, k, err
	}
	insert := func(kind string, parent *int64, c *x509.Certificate, k *ecdsa.PrivateKey) (int64, error) {
		return insertCA(ctx, tx, sealer, kind, parent, c, k, "signing", now)
	}

	var rootKey *ecdsa.PrivateKey
	var rootID int64
	if root == nil {
		if rootCert, rootKey, err = issueCA("AI Identity egress root", hosts, nil, nil, now, rootLife, rand); err != nil {
			return nil, err
		}
		if rootID, err = insert("root", nil, rootCert, rootKey); err != nil {
			return nil, err
		}
		ca.roots = append(ca.roots, rootCert)
	} else {
		rootID = root.ID
		for _, h := range hosts {
			if !slices.Contains(rootCert.PermittedDNSDomains, h) {
				return nil, fmt.Errorf("%w: %s. Its root permits only %s. Remove the host, or make a new root for it: aid egress rotate spread", ErrCAHosts, h, strings.Join(rootCert.PermittedDNSDomains, ", "))
			}
		}
	}
	if last != nil && last.Parent != nil && *last.Parent == rootID {
		c, k, err := open(last)
		if err != nil {
			return nil, fmt.Errorf("the egress CA's intermediate: %w", err)
		}
		if slices.Equal(c.PermittedDNSDomains, hosts) && now.Before(c.NotAfter.Add(-intermediateLife/2)) {
			ca.intermediate, ca.key = c, k
			return ca, nil
		}
	}
	if rootKey == nil {
		if _, rootKey, err = open(root); err != nil {
			return nil, fmt.Errorf("the egress CA's root: %w", err)
		}
	}
	if ca.intermediate, ca.key, err = issueCA("AI Identity egress intermediate", hosts, rootCert, rootKey, now, intermediateLife, rand); err != nil {
		return nil, err
	}
	if last != nil {
		if _, err := tx.Exec(ctx, "UPDATE egress_cas SET state = 'withdrawn', sealed = '', changed_at = $1 WHERE kind = 'intermediate' AND state <> 'withdrawn'", now); err != nil {
			return nil, err
		}
	}
	_, err = insert("intermediate", &rootID, ca.intermediate, ca.key)
	return ca, err
}

// caRow is a row of egress_cas.
type caRow struct {
	ID          int64
	Kind        string
	Parent      *int64
	Certificate []byte
	Sealed      string
	State       string
}

func insertCA(ctx context.Context, tx pgx.Tx, sealer CASealer, kind string, parent *int64, c *x509.Certificate, k *ecdsa.PrivateKey, state string, now time.Time) (id int64, err error) {
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return 0, err
	}
	sealed, err := sealer.Seal(der)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRow(ctx, "INSERT INTO egress_cas (kind, parent, certificate, sealed, state, changed_at) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
		kind, parent, c.Raw, sealed, state, now).Scan(&id)
	return id, err
}

// The steps of a rotation of the root, in their order.
const (
	RotateSpread   = "spread"   // a new root: applications should trust it, and it does not sign yet
	RotateSign     = "sign"     // the new root signs, and the old one is still trusted
	RotateWithdraw = "withdraw" // the old root is not trusted any more, and its key is deleted
)

// ErrRotation is wrapped by the errors of RotateCA for a step that is not due.
var ErrRotation = errors.New("this step of the rotation is not possible now")

// RotateCA takes one step of a rotation of the root. A leaf of the old root may be in use until
// LeafLife after the new one has begun to sign. So the old one is withdrawn only then.
func RotateCA(ctx context.Context, tx pgx.Tx, sealer CASealer, step string, hosts []string, now time.Time, rand io.Reader) error {
	if _, err := tx.Exec(ctx, "LOCK TABLE egress_cas IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		return err
	}
	var signing, spread, old int64 // ids of roots; 0: none
	var since time.Time            // when the present one began to sign
	rows, err := tx.Query(ctx, "SELECT id, state, changed_at FROM egress_cas WHERE kind = 'root' AND state <> 'withdrawn' ORDER BY id")
	if err != nil {
		return err
	}
	var id int64
	var state string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &state, &at}, func() error {
		switch {
		case state == "signing":
			signing, since = id, at
		case signing == 0:
			old = id // older than the one that signs
		default:
			spread = id
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case signing == 0:
		return fmt.Errorf("%w: there is no egress CA yet", ErrRotation)
	}
	switch step {
	case RotateSpread:
		if spread != 0 || old != 0 {
			return fmt.Errorf("%w: the last rotation has not ended: go on with sign or withdraw", ErrRotation)
		}
		c, k, err := issueCA("AI Identity egress root", slices.Sorted(slices.Values(hosts)), nil, nil, now, rootLife, rand)
		if err != nil {
			return err
		}
		_, err = insertCA(ctx, tx, sealer, "root", nil, c, k, "spread", now)
		return err
	case RotateSign:
		if spread == 0 {
			return fmt.Errorf("%w: there is no new root: begin with spread", ErrRotation)
		}
		if _, err := tx.Exec(ctx, "UPDATE egress_cas SET state = 'spread', changed_at = $2 WHERE id = $1", signing, now); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "UPDATE egress_cas SET state = 'signing', changed_at = $2 WHERE id = $1", spread, now)
		return err
	case RotateWithdraw:
		switch {
		case old == 0:
			return fmt.Errorf("%w: no old root is left", ErrRotation)
		case now.Before(since.Add(LeafLife)):
			return fmt.Errorf("%w: certificates of the old root are in use until %s", ErrRotation, since.Add(LeafLife).UTC().Format(time.RFC3339))
		}
		_, err := tx.Exec(ctx, "UPDATE egress_cas SET state = 'withdrawn', sealed = '', changed_at = $2 WHERE id = $1", old, now)
		return err
	}
	return fmt.Errorf("%w: the steps are spread, sign and withdraw", ErrRotation)
}

// ResealCA encrypts the keys of the CA again with the newest key of the sealer. It returns how
// many had an older one.
func ResealCA(ctx context.Context, tx pgx.Tx, sealer interface {
	CASealer
	Newest(sealed string) bool
}) (n int, err error) {
	rows, err := tx.Query(ctx, "SELECT id, sealed FROM egress_cas WHERE sealed <> '' ORDER BY id FOR UPDATE")
	if err != nil {
		return 0, err
	}
	type row struct {
		ID     int64
		Sealed string
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return 0, err
	}
	for _, r := range all {
		if sealer.Newest(r.Sealed) {
			continue
		}
		der, err := sealer.Open(r.Sealed)
		if err != nil {
			return n, fmt.Errorf("the egress CA's certificate %d: %w", r.ID, err)
		}
		sealed, err := sealer.Seal(der)
		if err != nil {
			return n, err
		}
		if _, err := tx.Exec(ctx, "UPDATE egress_cas SET sealed = $2 WHERE id = $1", r.ID, sealed); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// EgressRoots returns the roots that applications should trust, as PEM.
func EgressRoots(ctx context.Context, tx pgx.Tx) ([]byte, error) {
	rows, err := tx.Query(ctx, "SELECT certificate FROM egress_cas WHERE kind = 'root' AND state <> 'withdrawn' ORDER BY id")
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, der := range all {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out, nil
}

// issueCA makes a certificate that may sign for hosts, and its key. Without a parent it signs
// itself.
func issueCA(name string, hosts []string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, now time.Time, life time.Duration, rand io.Reader) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, nil, err
	}
	serial, err := serialNumber(rand)
	if err != nil {
		return nil, nil, err
	}
	_, v4, _ := net.ParseCIDR("0.0.0.0/0")
	_, v6, _ := net.ParseCIDR("::/0")
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: fmt.Sprintf("%s %x", name, serial.Bytes()[:4])},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: hosts, ExcludedIPRanges: []*net.IPNet{v4, v6},
	}
	if parent == nil {
		parent, parentKey = t, key
	} else {
		t.MaxPathLen, t.MaxPathLenZero = 0, true
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if t.NotAfter.After(parent.NotAfter) {
			t.NotAfter = parent.NotAfter
		}
	}
	der, err := x509.CreateCertificate(rand, t, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, err
	}
	c, err := x509.ParseCertificate(der)
	return c, key, err
}

// Leaf makes a certificate for one host, with one DNS name and no common name. It returns the
// chain up to the intermediate, and the key, as PEM.
func (ca *CA) Leaf(host string, now time.Time) (chain, key []byte, notAfter time.Time, err error) {
	if !slices.Contains(ca.intermediate.PermittedDNSDomains, host) {
		return nil, nil, time.Time{}, fmt.Errorf("%w: %s", ErrCAHosts, host)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), ca.rand)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	serial, err := serialNumber(ca.rand)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	notAfter = now.Add(LeafLife)
	if notAfter.After(ca.intermediate.NotAfter) {
		notAfter = ca.intermediate.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: notAfter, DNSNames: []string{host},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(ca.rand, t, ca.intermediate, &k.PublicKey, crypto.Signer(ca.key))
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, time.Time{}, err
	}
	chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.intermediate.Raw})...)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), notAfter, nil
}

// RenewAt is when EnsureCA replaces the intermediate.
func (ca *CA) RenewAt() time.Time { return ca.intermediate.NotAfter.Add(-intermediateLife / 2) }

// serialNumber is random, with 127 bits (RFC 5280, section 4.1.2.2).
func serialNumber(rand io.Reader) (*big.Int, error) {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:]), nil
}

// An Authority issues leaves, and replaces its intermediate in time. It is safe for concurrent
// use.
type Authority struct {
	db     Transactions
	sealer CASealer
	hosts  []string
	rand   io.Reader

	mu   sync.Mutex
	ca   *CA
	read time.Time // when ca was read
}

// reread is how long an Authority uses the CA without reading it again, so that a rotation
// holds for every control plane.
const reread = time.Minute

// Transactions begins transactions that have no organization; *pgxpool.Pool does.
type Transactions interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// NewAuthority reads or creates the CA for hosts.
func NewAuthority(ctx context.Context, db Transactions, sealer CASealer, hosts []string, now time.Time, rand io.Reader) (*Authority, error) {
	a := &Authority{db: db, sealer: sealer, hosts: hosts, rand: rand}
	return a, a.renew(ctx, now)
}

func (a *Authority) renew(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) (err error) {
		ca, err := EnsureCA(ctx, tx, a.sealer, a.hosts, now, a.rand)
		if err == nil {
			a.ca, a.read = ca, now
		}
		return err
	})
}

// Leaf makes a certificate for a host: see CA.Leaf. If the intermediate cannot be replaced now,
// the last one signs as long as it is valid.
func (a *Authority) Leaf(ctx context.Context, host string, now time.Time) (chain, key []byte, notAfter time.Time, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !now.Before(a.ca.RenewAt()) || !now.Before(a.read.Add(reread)) {
		if err := a.renew(ctx, now); err != nil {
			if !now.Before(a.ca.intermediate.NotAfter) {
				return nil, nil, time.Time{}, fmt.Errorf("replacing the egress CA's intermediate: %w", err)
			}
			a.read = now // the database is not asked again for each host
		}
	}
	return a.ca.Leaf(host, now)
}
