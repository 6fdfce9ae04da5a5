package main

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestATokenIsShownOnceAndRevokedByName(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	url := pool.Config().ConnString()

	secret := strings.TrimSpace(expect(t, url, "tokens create ci --role operator --for 720h --by ann", 0, "mrt_"))
	if len(secret) != len("mrt_")+43 { // 256 bits in base64
		t.Errorf("the token is %q", secret)
	}

	if out := expect(t, url, "tokens list", 0, "ci    operator  valid"); strings.Contains(out, secret) || !strings.Contains(out, "never") || !strings.Contains(out, "ann") {
		t.Errorf("the list shows the secret, or not who made it, or a use:\n%s", out)
	}

	if n := pgtest.Value[int](t, pool, `SELECT count(*)::int FROM api_tokens WHERE digest = sha256(convert_to($1, 'UTF8')) AND api_tokens::text NOT LIKE '%' || $1 || '%'`, secret); n != 1 {
		t.Error("the table does not have the digest of the token alone")
	}

	expect(t, url, "tokens create ci", exitFailure, "token ci already exists; names cannot be reused")
	expect(t, url, "tokens create x --role root", exitUsage, "unknown role root, expected viewer, operator or admin")
	expect(t, url, "tokens create x --for 0s", exitUsage, "for: is 0s, expected 1m to")
	expect(t, url, "tokens revoke ci --by bob", 0, "revoked ci")
	expect(t, url, "tokens revoke ci", 0, "ci was already revoked")
	expect(t, url, "tokens revoke nothing", exitNotFound, "there is no token nothing")
	expect(t, url, "tokens list --json", 0, `"revoked_by": "bob"`)
}
