// Package scrub removes secrets from text that comes from elsewhere: from a
// configuration, from another system's answer, from a library's error. Text is scrubbed
// where it enters something that keeps or shows it: the log, the failed messages, the
// state of a dependency, the record of a notification, the terminal.
package scrub

import (
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Hidden replaces a secret.
const Hidden = "(redacted)"

// Words that name a secret: in JSON, in headers, in URLs and in connection strings.
const (
	secretName = `[\w.-]*(?:passw(?:or)?d|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key|signature|credentials?|session[_-]?id|auth)`
	headerName = `(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-auth-token|x-amz-security-token|(?:webhook|stripe)-signature`
)

// secretWords and headerWords are texts of which each such name has at least one.
var (
	secretWords = []string{"pass", "pwd", "secret", "token", "key", "signature", "credential", "session", "auth"}
	headerWords = []string{"authorization", "cookie", "x-", "signature"}
)

// quote is a quotation mark, escaped or not.
const quote = `\\*["']`

// rule replaces what pattern matches. Without replace, the whole match is a secret.
type rule struct {
	pattern *regexp.Regexp
	// needs are texts of which each match, once folded, has at least one. Most texts have
	// none, and looking for them is much faster than trying the pattern.
	needs []string
	// replace is a template for Expand.
	replace string
	// unless reports whether a match is not a secret and should be kept.
	unless func(match string) bool
}

// rules run in this order: a URL or a header is handled as a whole before single words
// in it are examined.
var rules = []rule{
	// The user and password of a URL. A password may contain a slash or an @.
	{needs: []string{"://"}, pattern: regexp.MustCompile(`(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s"'<>?#]*@`), replace: "${1}" + Hidden + "@"},
	// The query and fragment of a URL.
	{needs: []string{"://"}, pattern: regexp.MustCompile(`(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>?#]*)[?#][^\s"'<>]+`), replace: "${1}?" + Hidden},
	// The path of a URL may be a secret, such as that of a Slack webhook.
	{needs: []string{"://"}, pattern: regexp.MustCompile(`(\bhttps?://[^\s"'<>/]+)/[^\s"'<>?]+`), replace: "${1}/" + Hidden, unless: func(match string) bool { return !hasSecretPath(match) }},

	// Headers, as text, as JSON and as Go prints them: the value ends with its
	// quotation mark, bracket or line.
	{needs: headerWords, pattern: regexp.MustCompile(`(?i)\b(` + headerName + `)(` + quote + `)(\s*[:=]\s*\[?)(` + quote + `)[^"'\r\n\\]*`), replace: "${1}${2}${3}${4}" + Hidden},
	{needs: headerWords, pattern: regexp.MustCompile(`(?i)\b(` + headerName + `)(\s*[:=]\s*)\[[^\]\r\n]*\]?`), replace: "${1}${2}" + Hidden},
	{needs: headerWords, pattern: regexp.MustCompile(`(?i)\b(` + headerName + `)(\s*[:=]\s*)(?:(?:bearer|basic|digest|token|negotiate|apikey)\s+)?[^\s"'\[(,;}\])\\][^\s"',;}\])\\]*`), replace: "${1}${2}" + Hidden},

	// JSON and Python: the value ends with its own quotation mark. Then YAML, connection
	// strings and forms.
	{needs: secretWords, pattern: regexp.MustCompile(`(?i)(` + quote + secretName + quote + `\s*:\s*\[?")(?:[^"\\]|\\.)+`), replace: "${1}" + Hidden},
	{needs: secretWords, pattern: regexp.MustCompile(`(?i)(` + quote + secretName + quote + `\s*:\s*\[?')(?:[^'\\]|\\.)+`), replace: "${1}" + Hidden},
	{needs: secretWords, pattern: regexp.MustCompile(`(?i)(` + quote + secretName + quote + `\s*:\s*\[?\\+")(?:[^"\\]|\\+[^"\\])+`), replace: "${1}" + Hidden},
	{needs: secretWords, pattern: regexp.MustCompile(`(?i)(` + quote + secretName + quote + `\s*:\s*\[?\\+')(?:[^'\\]|\\+[^'\\])+`), replace: "${1}" + Hidden},
	{needs: secretWords, pattern: regexp.MustCompile(`(?i)(` + quote + secretName + quote + `\s*:\s*\[?)-?\d[\w.+-]*`), replace: "${1}" + Hidden},
	{needs: secretWords, pattern: regexp.MustCompile(`(?im)^([ \t]*(?:- +)?` + secretName + `:[ \t]+)(?:'[^'\r\n]*'|"[^"\r\n]*"|\S+)[ \t]*$`), replace: "${1}" + Hidden},
	{needs: secretWords, pattern: regexp.MustCompile(`(?i)\b(` + secretName + `\s*=\s*)(?:'[^']*'|"[^"]*"|[^\s"'&,;)}\]]+)`), replace: "${1}" + Hidden, unless: isHidden},

	// Credentials that can be recognised by their form alone.
	{needs: []string{"bearer", "basic", "token", "apikey"}, pattern: regexp.MustCompile(`(?i)\b(bearer|basic|token|apikey)\s+[\w.~+/=*-]{8,}`), replace: "${1} " + Hidden, unless: isProse},
	{needs: []string{"k_", "whs"}, pattern: regexp.MustCompile(`\b(?:sk|rk|pk)_(?:live|test|org)_[\w*]+|\bwhsec_[\w+/=*-]+|\bwhs[kp]k?_[\w+/=-]+`)},
	{needs: []string{"_secret_"}, pattern: regexp.MustCompile(`\b(?:pi|seti|cs|src)_\w+_secret_\w+`)},
	{needs: []string{"eyj"}, pattern: regexp.MustCompile(`\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?`)}, // JSON Web Tokens
	{needs: []string{"mrt_"}, pattern: regexp.MustCompile(`\bmrt_[\w-]{20,}`)},                   // Millrace's API tokens
	{needs: []string{"gh", "xox", "akia", "asia"}, pattern: regexp.MustCompile(`\bgh[opsur]_\w{20,}|\bxox[abeoprs]-[\w-]{10,}|\bA[KS]IA[0-9A-Z]{16}\b`)},
	{needs: []string{"private key"}, pattern: regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?`)},
}

// Text returns s without secrets: passwords, queries and secret paths of URLs,
// credentials in headers, JSON and connection strings, and keys and tokens with a
// known form.
func Text(s string) string {
	folded := fold(s)

	for _, r := range rules {
		if !r.mayMatch(folded) {
			continue
		}

		s = r.pattern.ReplaceAllStringFunc(s, func(match string) string {
			switch {
			case r.unless != nil && r.unless(match):
				return match
			case r.replace == "":
				return Hidden
			default:
				return r.pattern.ReplaceAllString(match, r.replace)
			}
		})
	}

	return s
}

// mayMatch reports whether it is worth trying the pattern on a folded text.
func (r rule) mayMatch(folded string) bool {
	return slices.ContainsFunc(r.needs, func(text string) bool { return strings.Contains(folded, text) })
}

// fold returns s in lower case, with the letters that (?i) takes for those of ASCII: the
// Kelvin sign, whose lower case is k, and the long s.
func fold(s string) string { return strings.ReplaceAll(strings.ToLower(s), "ſ", "s") }

// path matches the path of a URL.
var path = regexp.MustCompile(`(://[^\s/?#]*)/[^\s?#]+`)

// Address returns a receiver's URL without secrets. Its whole path may be a secret.
func Address(s string) string { return path.ReplaceAllString(Text(s), "${1}/"+Hidden) }

// URL is a receiver's address, which is printed without secrets.
type URL string

// LogValue hides the secrets.
func (u URL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// String hides the secrets.
func (u URL) String() string { return Address(string(u)) }

// isHidden reports whether a value is already hidden.
func isHidden(match string) bool { return strings.Contains(match, strings.TrimSuffix(Hidden, ")")) }

// isProse reports whether the word after "basic" or "token" is an ordinary word.
func isProse(match string) bool {
	word := strings.Fields(match)[1]

	return strings.IndexFunc(word, func(r rune) bool { return !unicode.IsLower(r) && r != '-' && r != '.' }) < 0
}

// minSecret is the minimum length of a part of a path that may be a secret.
const minSecret = 16

// hasSecretPath reports whether the path of a URL has a part that looks random: long,
// with letters and digits.
func hasSecretPath(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return true
	}

	for part := range strings.SplitSeq(u.Path, "/") {
		if len(part) >= minSecret && strings.ContainsFunc(part, unicode.IsLetter) && strings.ContainsFunc(part, unicode.IsDigit) {
			return true
		}
	}

	return false
}
