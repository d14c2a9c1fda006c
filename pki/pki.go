// Package pki is a small certificate authority and the mutual TLS
// configurations made from it. Every process of an installation shows a
// certificate signed by the installation's one CA; the certificate's URI name,
// spiffe://drover/ROLE/NAME (the form of the SPIFFE ID standard), says who it
// is. TLS 1.3 only, both ends verified.
//
// It leaves to others what a role may do, and how a new machine is given its
// certificate over the network.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/drover-vm/drover"
)

// Role is what a certificate's holder is in the installation.
type Role string

// The roles.
const (
	Server   Role = "server"
	Agent    Role = "agent"
	Operator Role = "operator"
)

const (
	// caLife is long because replacing a CA touches every host; leafLife is
	// a year until certificates renew themselves.
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// backdate lets a host whose clock is somewhat behind accept a new
	// certificate; preflight reports clocks that differ by more.
	backdate = 10 * time.Minute

	caCertFile = "ca.crt"
	caKeyFile  = "ca.key"
)

// Identity is who a certificate says its holder is.
type Identity struct {
	Role Role
	Name string
}

// String returns "role/name".
func (i Identity) String() string { return string(i.Role) + "/" + i.Name }

func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "drover", Path: "/" + string(i.Role) + "/" + i.Name}
}

// Files name a process's own certificate and key and the CA it trusts, all PEM.
type Files struct {
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Validate reports the first of the three names that is missing.
func (f Files) Validate() error {
	for _, e := range []struct{ field, value string }{{"tls.ca", f.CA}, {"tls.cert", f.Cert}, {"tls.key", f.Key}} {
		if e.value == "" {
			return drover.Errorf(drover.Invalid, e.field, "missing: want the path of a PEM file")
		}
	}
	return nil
}

// CA signs certificates.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA in dir, which is made too. An existing CA gives
// drover.Exists.
func NewCA(dir string, now time.Time) (*CA, error) {
	const op = "make certificate authority"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	if _, err := os.Stat(filepath.Join(dir, caCertFile)); err == nil {
		return nil, drover.Errorf(drover.Exists, op, "%s already holds one", dir)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Drover CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	// The key is written first: a certificate without its key would look like
	// a CA to the next call.
	if err := writeKey(filepath.Join(dir, caKeyFile), key); err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	if err := writePEM(filepath.Join(dir, caCertFile), "CERTIFICATE", der, 0o644); err != nil {
		return nil, drover.E(drover.Internal, op, err)
	}
	return LoadCA(dir)
}

// LoadCA opens the CA in dir.
func LoadCA(dir string) (*CA, error) {
	const op = "load certificate authority"
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, caCertFile), filepath.Join(dir, caKeyFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, drover.E(drover.NotFound, op, err)
	}
	if err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, drover.Errorf(drover.Invalid, op, "%s: want an ECDSA key", caKeyFile)
	}
	return &CA{dir: dir, cert: pair.Leaf, key: key}, nil
}

// CertFile is the path of the CA's certificate.
func (ca *CA) CertFile() string { return filepath.Join(ca.dir, caCertFile) }

// Issue makes a certificate for id, valid for the given addresses and names,
// and writes ca.crt, NAME.crt and NAME.key into dir.
func (ca *CA) Issue(id Identity, hosts []string, dir string, now time.Time) (Files, error) {
	op := "issue certificate for " + id.String()
	switch id.Role {
	case Server, Agent, Operator:
	default:
		return Files{}, drover.Errorf(drover.Invalid, op, "role %q: want server, agent or operator", id.Role)
	}
	if err := drover.CheckName("name", id.Name); err != nil {
		return Files{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Files{}, drover.E(drover.Internal, op, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, drover.E(drover.Internal, op, err)
	}
	serial, err := serialNumber()
	if err != nil {
		return Files{}, drover.E(drover.Internal, op, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: id.String()},
		URIs:         []*url.URL{id.uri()},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return Files{}, drover.E(drover.Internal, op, err)
	}
	f := Files{
		CA:   filepath.Join(dir, caCertFile),
		Cert: filepath.Join(dir, id.Name+".crt"),
		Key:  filepath.Join(dir, id.Name+".key"),
	}
	err = errors.Join(
		writeKey(f.Key, key),
		writePEM(f.Cert, "CERTIFICATE", der, 0o644),
		writePEM(f.CA, "CERTIFICATE", ca.cert.Raw, 0o644),
	)
	return f, drover.E(drover.Internal, op, err)
}

// Config makes the TLS configuration of a process, for both listening and
// dialing. ALPN protocols are the caller's to set. A dialed peer is verified
// by the CA and by its identity (see Expect), not by its address: hosts are
// reached by addresses that change.
func Config(f Files) (*tls.Config, error) {
	const op = "load certificates"
	if err := f.Validate(); err != nil {
		return nil, err
	}
	pemCA, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, drover.E(drover.Invalid, "tls.ca", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pemCA) {
		return nil, drover.Errorf(drover.Invalid, "tls.ca", "%s: holds no PEM certificate", f.CA)
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, drover.E(drover.Invalid, "tls.cert", err)
	}
	if _, err := identity(pair.Leaf); err != nil {
		return nil, drover.E(drover.Invalid, op, err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		RootCAs:      pool,
		// The chain is verified in VerifyConnection instead, which does not
		// ask for a host name; see verifyPeer.
		InsecureSkipVerify: true,
		VerifyConnection:   verifyPeer(pool, nil),
	}, nil
}

// Expect returns a copy of cfg for dialing that accepts only the named peer.
// An empty Name accepts any holder of the role.
func Expect(cfg *tls.Config, want Identity) *tls.Config {
	c := cfg.Clone()
	c.VerifyConnection = verifyPeer(cfg.RootCAs, &want)
	return c
}

// verifyPeer checks the whole chain for both directions of use, and the
// identity where one is wanted. It runs on resumed sessions too.
func verifyPeer(roots *x509.CertPool, want *Identity) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the peer showed no certificate")
		}
		leaf := cs.PeerCertificates[0]
		between := x509.NewCertPool()
		for _, c := range cs.PeerCertificates[1:] {
			between.AddCert(c)
		}
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err != nil {
			return err
		}
		id, err := identity(leaf)
		if err != nil {
			return err
		}
		if want != nil && (id.Role != want.Role || want.Name != "" && id.Name != want.Name) {
			return fmt.Errorf("the peer is %s, want %s", id, want)
		}
		return nil
	}
}

// Peer returns who is at the other end of a connection made with Config.
func Peer(cs *tls.ConnectionState) (Identity, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return Identity{}, drover.Errorf(drover.Denied, "identify peer", "no certificate shown")
	}
	id, err := identity(cs.PeerCertificates[0])
	return id, drover.E(drover.Denied, "identify peer", err)
}

// Expiry returns when the certificate in the file ends.
func Expiry(certFile string) (time.Time, error) {
	raw, err := os.ReadFile(certFile)
	if err != nil {
		return time.Time{}, drover.E(drover.Invalid, "read certificate", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return time.Time{}, drover.Errorf(drover.Invalid, "read certificate", "%s: not PEM", certFile)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, drover.E(drover.Invalid, "read certificate", err)
	}
	return c.NotAfter, nil
}

func identity(c *x509.Certificate) (Identity, error) {
	for _, u := range c.URIs {
		if u.Scheme != "spiffe" || u.Host != "drover" {
			continue
		}
		role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		if ok && drover.CheckName("name", name) == nil {
			return Identity{Role(role), name}, nil
		}
	}
	return Identity{}, errors.New("certificate has no spiffe://drover/ROLE/NAME name")
}

func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der, 0o600)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	raw := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(tmp, raw, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
