package dns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover-vm/drover"
)

func TestReadKeyFile(t *testing.T) {
	const secret = "c2VjcmV0IG9mIHRoZSB0ZXN0+/=="
	want := Key{Name: "drover.example", Algorithm: "hmac-sha512", Secret: secret}
	path := filepath.Join(t.TempDir(), "key")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{
		"key \"drover.example\" {\n\talgorithm hmac-sha512;\n\tsecret \"" + secret + "\";\n};\n",
		"# made by hand\nkey drover.example { secret \"" + secret + "\"; algorithm hmac-sha512; };",
		"/* key \"other\" {}; */ key \"drover.example\" { algorithm \"hmac-sha512\"; secret " + secret + "; } ;",
	} {
		write(text)
		if got, err := ReadKeyFile(path); err != nil || got != want {
			t.Errorf("%s: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "key x { algorithm hmac-sha256; };", "key x { secret \"" + secret + "\"; };",
		"key a { algorithm hmac-sha256; secret \"" + secret + "\"; }; key b { algorithm hmac-sha256; secret \"" + secret + "\"; };",
	} {
		write(text)
		_, err := ReadKeyFile(path)
		if drover.KindOf(err) != drover.Invalid || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %v, want it invalid and the secret kept", text, err)
		}
	}
	if _, err := ReadKeyFile(path + "x"); drover.KindOf(err) != drover.Invalid {
		t.Errorf("missing: got %v", err)
	}
}
