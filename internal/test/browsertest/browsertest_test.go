package browsertest_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

func TestAxeIsTheOneFromNPM(t *testing.T) {
	t.Parallel()

	list, err := os.ReadFile("vendor.sum")
	if err != nil {
		t.Fatal(err)
	}

	axe, err := os.ReadFile("axe.js")
	if err != nil {
		t.Fatal(err)
	}

	sum := sha256.Sum256(axe)
	if want, _, _ := strings.Cut(string(list), " "); want != hex.EncodeToString(sum[:]) {
		t.Errorf("axe.js has the checksum %x, expected %s", sum, want)
	}
}
