package dns

import (
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/drover-vm/drover"
)

// maxKeyFile is far above what a file with one key has.
const maxKeyFile = 64 << 10

// A key statement of named.conf, as tsig-keygen writes it, and its parts.
var (
	keyStatement = regexp.MustCompile(`(?s)\bkey\s+"?([A-Za-z0-9_.-]+)"?\s*\{(.*?)\}\s*;`)
	keyAlgorithm = regexp.MustCompile(`\balgorithm\s+"?([A-Za-z0-9.-]+)"?\s*;`)
	keySecret    = regexp.MustCompile(`\bsecret\s+"?([A-Za-z0-9+/=]+)"?\s*;`)
	keyComment   = regexp.MustCompile(`(?s:/\*.*?\*/)|(?m:(?:#|//\s).*$)`)
)

// ReadKeyFile reads the key of a file with one key statement, as tsig-keygen
// writes it and BIND and Knot's tools read it. What is wrong with the file is
// drover.Invalid; the secret is in no error.
func ReadKeyFile(path string) (Key, error) {
	const op = "key file"
	f, err := os.Open(path)
	if err != nil {
		return Key{}, drover.E(drover.Invalid, op, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return Key{}, drover.E(drover.Invalid, op, err)
	}
	fault := func(why string) (Key, error) {
		return Key{}, drover.E(drover.Invalid, op, fmt.Errorf("%s: %s: want key NAME { algorithm hmac-sha256; secret \"BASE64\"; };", path, why))
	}
	all := keyStatement.FindAllSubmatch(keyComment.ReplaceAll(raw, nil), -1)
	if len(all) != 1 {
		return fault(fmt.Sprintf("%d keys", len(all)))
	}
	key := Key{Name: string(all[0][1])}
	algorithm, secret := keyAlgorithm.FindSubmatch(all[0][2]), keySecret.FindSubmatch(all[0][2])
	if algorithm == nil || secret == nil {
		return fault("no algorithm or no secret")
	}
	key.Algorithm, key.Secret = string(algorithm[1]), string(secret[1])
	return key, nil
}
