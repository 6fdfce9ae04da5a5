package scrub_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/scrub"
)

func TestSecretsAreRemoved(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct{ text, want string }{
		"user and password":    {`dial amqp://shop:hunter2@mq.example:5672/: refused`, `dial amqp://(redacted)@mq.example:5672/: refused`},
		"a user only":          {`https://hunter2@git.example/x`, `https://(redacted)@git.example/x`},
		"an @ in the password": {`postgres://u:hun@ter2@db/shop`, `postgres://(redacted)@db/shop`},
		"a / in the password":  {`parse "postgres://u:hun/ter2@db/shop": invalid port`, `parse "postgres://(redacted)@db/shop": invalid port`},
		"an escaped password":  {`kafka+tls://u:hunter2%40@k:9092`, `kafka+tls://(redacted)@k:9092`},
		"a query":              {`Post "https://hooks.example/in?token=hunter2&a=b": EOF`, `Post "https://hooks.example/in?(redacted)": EOF`},
		"a fragment":           {`https://hooks.example/in#hunter2`, `https://hooks.example/in?(redacted)`},
		"both":                 {`https://u:hunter2@h.example/in?t=hunter2`, `https://(redacted)@h.example/in?(redacted)`},
		"a proxy":              {`proxyconnect tcp: http://p:hunter2@proxy:3128 refused`, `proxyconnect tcp: http://(redacted)@proxy:3128 refused`},
		"a Slack webhook":      {`https://hooks.slack.com/services/T01ABCDEF/B01ABCDEF/hunter2hunter2hunter2xyz`, `https://hooks.slack.com/(redacted)`},
		"a Telegram bot":       {`https://api.telegram.org/bot123456:AAhunter2-hunter2/sendMessage`, `https://api.telegram.org/(redacted)`},

		"a header":              {"401\r\nAuthorization: Bearer hunter2\r\nHost: x", "401\r\nAuthorization: (redacted)\r\nHost: x"},
		"a header, basic":       {`authorization: Basic dXNlcjpodW50ZXIy`, `authorization: (redacted)`},
		"a header, no scheme":   {`X-Api-Key: hunter2, Accept: */*`, `X-Api-Key: (redacted), Accept: */*`},
		"a header of Go":        {`map[Accept:[*/*] Authorization:[Bearer hunter2 x] Host:[h]]`, `map[Accept:[*/*] Authorization:(redacted) Host:[h]]`},
		"a header in JSON":      {`{"headers":{"Authorization":"Bearer hunter2","Host":"h"}}`, `{"headers":{"Authorization":"(redacted)","Host":"h"}}`},
		"headers in JSON":       {`{"Authorization": ["Basic hunter2=="], "Host": ["h"]}`, `{"Authorization": ["(redacted)"], "Host": ["h"]}`},
		"a header in quoted":    {`"{\"authorization\":\"Bearer hunter2\"}"`, `"{\"authorization\":\"(redacted)\"}"`},
		"a header of Python":    {`{'authorization': 'Bearer hunter2', 'host': 'h'}`, `{'authorization': '(redacted)', 'host': 'h'}`},
		"a cookie":              {`Cookie: session=hunter2; a=b`, `Cookie: (redacted); a=b`},
		"a webhook's signature": {`webhook-signature: v1,hunter2`, `webhook-signature: (redacted)`},

		"JSON":                        {`{"password":"hunter2","user":"u"}`, `{"password":"(redacted)","user":"u"}`},
		"JSON, prefixed":              {`{"db_password": "hunter2"}`, `{"db_password": "(redacted)"}`},
		"JSON, camel case":            {`{"clientSecret":"hunter2","accessToken":"hunter2"}`, `{"clientSecret":"(redacted)","accessToken":"(redacted)"}`},
		"JSON, an apostrophe":         {`{"token":"hun'ter2","user":"u"}`, `{"token":"(redacted)","user":"u"}`},
		"JSON, an escape":             {`{"token":"hun\"ter2\\","user":"u"}`, `{"token":"(redacted)","user":"u"}`},
		"JSON, a number":              {`{"password":12345,"n":1}`, `{"password":(redacted),"n":1}`},
		"JSON in JSON, an apostrophe": {`"{\"token\":\"hun'ter2\",\"n\":1}"`, `"{\"token\":\"(redacted)\",\"n\":1}"`},
		"Python, a quotation mark":    {`{'token': 'hun"ter2', 'n': 1}`, `{'token': '(redacted)', 'n': 1}`},
		"Python, an apostrophe":       {`{'token': "hun'ter2", 'n': 1}`, `{'token': "(redacted)", 'n': 1}`},
		"YAML":                        {"user: u\n  password: hunter2\nhost: h", "user: u\n  password: (redacted)\nhost: h"},
		"YAML, quoted":                {"- db_password: 'hun ter2'", "- db_password: (redacted)"},
		"a DSN":                       {`cannot parse "host=db user=u password=hunter2 sslmode=disable"`, `cannot parse "host=db user=u password=(redacted) sslmode=disable"`},
		"a quoted DSN":                {`host=db password='hun ter2' user=u`, `host=db password=(redacted) user=u`},
		"a path":                      {`GET /hook?token=hunter2&a=b HTTP/1.1`, `GET /hook?token=(redacted)&a=b HTTP/1.1`},
		"a form":                      {`client_secret=hunter2&grant_type=x`, `client_secret=(redacted)&grant_type=x`},

		"a bearer":                {`you sent Bearer hunter2.hunter2`, `you sent Bearer (redacted)`},
		"a token of our own":      {`refused mrt_hunter2hunter2hunter2hunter2`, `refused (redacted)`},
		"Stripe's key":            {`Invalid API Key provided: sk_live_hunter2`, `Invalid API Key provided: (redacted)`},
		"Stripe's restricted key": {`rk_test_51hunter2 may not`, `(redacted) may not`},
		"Stripe's intent":         {`"pi_3hunter2_secret_hunter2"`, `"(redacted)"`},
		"a webhook's secret":      {`expected whsec_hunter2+/==`, `expected (redacted)`},
		"a JSON Web Token":        {`eyJhbGciOiJIUzI1NiJ9.eyJodW50ZXIyIjoxfQ.hunter2 expired`, `(redacted) expired`},
		"GitHub's token":          {`ghp_hunter2hunter2hunter2hunter2`, `(redacted)`},
	} {
		if got := scrub.Text(c.text); got != c.want {
			t.Errorf("%s:\n  got  %s\n  want %s", name, got, c.want)
		}
	}
}

func TestOtherTextStays(t *testing.T) {
	t.Parallel()

	for _, text := range []string{
		"",
		"order.quantity: is 0, expected 1 to 1000000000",
		"user_id: there is no user alice@home.example to send an e-mail to",
		"dial tcp 10.0.0.7:587: connect: connection refused",
		"failed to connect to `user=shop database=shop`: hostname resolving error: lookup db: no such host",
		"https://hooks.example/services/orders/notifications-of-shop",
		"https://api.stripe.com",
		"http://127.0.0.1:9464/api/v1/failed/17",
		"kafka:orders.created/3@42",
		"notification.webhook.secret: is not a secret, expected whsec_ and then 24 to 64 bytes in base64",
		"broker.kafka.user: set it together with broker.kafka.password, or neither",
		"the server requires basic authentication",
		"the token expired",
		"unexpected token '}' at byte 7",
		"postgres.url: not a connection string, expected postgres://user@host:5432/database"[:52],
		`550 "5.1.1 <(address)>: no such mailbox"`,
		"01a20d99-da82-78bd-aff6-b8d9052f7c63",
		`{"order":{"id":"x","product_id":"p","quantity":1}}`,
	} {
		if got := scrub.Text(text); got != text {
			t.Errorf("%s\n  became %s", text, got)
		}
	}
}

// The test uses the errors that the libraries return today.
func TestErrorsOfLibraries(t *testing.T) {
	t.Parallel()

	const secret = "hunter2hunter2"

	_, urlErr := url.Parse("https://u:" + secret + "@host:port/x") //nolint:staticcheck // invalid on purpose
	_, poolErr := pgxpool.ParseConfig("postgres://u:" + secret + "@host:port/x")
	_, dsnErr := pgxpool.ParseConfig("host=h user=u password=" + secret + " port=x")
	_, requestErr := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://u:"+secret+"@h:x/?token="+secret, nil)
	_, jsonErr := json.Marshal(map[string]any{secret: make(chan int)})

	for _, err := range []error{
		urlErr, poolErr, dsnErr, requestErr, jsonErr,
		&url.Error{Op: "Post", URL: "https://h/x?key=" + secret, Err: http.ErrHandlerTimeout},
		fmt.Errorf("headers: %v", http.Header{"Authorization": {"Bearer " + secret}}),
	} {
		if got := scrub.Text(err.Error()); strings.Contains(got, secret) {
			t.Errorf("%v\n  became %s", err, got)
		}
	}
}

func TestScrubbingTwiceChangesNothing(t *testing.T) {
	t.Parallel()

	for _, text := range []string{
		"https://u:p@h/x?y=z", "Authorization: Bearer abc", `{"password":"x"}`, "password=x", "Authorization:[Bearer x]", "sk_live_1", `{"Authorization":["x"]}`,
	} {
		once := scrub.Text(text)
		if twice := scrub.Text(once); twice != once {
			t.Errorf("%s became %s, then %s", text, once, twice)
		}
	}
}
