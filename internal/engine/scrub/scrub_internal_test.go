package scrub

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// fragments are parts of texts that rules match, and of texts that they nearly match.
var fragments = []string{
	"https://", "ftp://", "user", ":", "=", "@", "/", "?", "#", "&", " ", "\n", "\t", "- ", "'", `"`, `\"`, `\\'`, "{", "}", "[", "]", ",", ";",
	"password", "PASSWD", "api_key", "Secret", "session-id", "x.auth", "Authorization", "cookie: [", `"x-auth-token": "`, "set-cookie", "X-Api-Key", "stripe-signature",
	"Bearer", "basic", "TOKEN", "apikey", "digest", "sk_live_", "rk_test_", "pk_org_", "whsec_", "whsk_", "whspk_", "pi_", "_secret_", "seti", "cs_1_secret_2",
	"eyJhbGciOiJI", ".", "mrt_", "ghp_", "ghs_", "xoxb-", "AKIA", "ASIA", "ABCDEFGHIJKLMNOP0123", "abcdefghijklmnopqrstuvwxyz0123456789", "17",
	`"password"`, `'api_key'`, `\"token\"`, `\'auth\'`, `: "`, ": '", `: \"`, `: \'`, ": 17",
	"-----BEGIN ", "RSA ", "PRIVATE KEY-----", "-----END ", "pa\u017f\u017fwd=17", "to\u212aen=17", "ba\u017fic ",
}

// A rule is skipped only for texts in which its pattern would find nothing.
func TestSkippedRulesWouldFindNothing(t *testing.T) {
	t.Parallel()

	matched := map[int]int{}
	random := rand.New(rand.NewPCG(1, 2)) // the same texts each time

	for range 4_000 {
		var b strings.Builder
		for range 1 + random.IntN(8) {
			b.WriteString(fragments[random.IntN(len(fragments))])
		}

		text := b.String()

		for i, r := range rules {
			switch matches := r.pattern.MatchString(text); {
			case matches && !r.mayMatch(fold(text)):
				t.Fatalf("rule %d skips %q, which %s matches", i, text, r.pattern)
			case matches:
				matched[i]++
			}
		}
	}

	for i, r := range rules {
		if matched[i] == 0 {
			t.Errorf("no text matches rule %d, %s", i, r.pattern)
		}
	}
}
