package broker_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker/kafka"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/brokertest"
)

// identities is a server that issues signed tokens to one client.
type identities struct {
	*testing.T
	*httptest.Server

	key *rsa.PrivateKey
}

func newIdentities(t *testing.T) *identities {
	t.Helper()

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)

	i := &identities{T: t, key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", i.token)
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1",
			"n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})

	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)

	return i
}

func encode(bytes []byte) string { return base64.RawURLEncoding.EncodeToString(bytes) }

// token grants a token, whose audience is the scope, to the client "shop".
func (i *identities) token(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")

	if id, secret, _ := r.BasicAuth(); id != "shop" || secret != "right" || r.FormValue("grant_type") != "client_credentials" {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error": "invalid_client", "error_description": "unknown client or wrong secret"}`)

		return
	}

	now := time.Now()

	claims, err := json.Marshal(map[string]any{
		"sub": "shop", "aud": r.FormValue("scope"), "scope": r.FormValue("scope"), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	must(i, err)

	signed := encode([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))

	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	must(i, err)

	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": signed + "." + encode(signature), "token_type": "Bearer", "expires_in": 3600})
}

// login changes how the account "shop" logs in to a Kafka server that requires a login.
type login func(s *secured, cfg *kafka.Config)

// bySASL logs in with a password or a client secret.
func bySASL(mechanism, password string) login {
	return func(s *secured, cfg *kafka.Config) {
		cfg.SASLMechanism, cfg.User, cfg.Password = mechanism, "shop", "right"

		if password != "" {
			cfg.Password = postgres.Secret(password)
		}

		if mechanism == sarama.SASLTypeOAuth {
			cfg.TokenURL, cfg.Scopes = s.identities.URL+"/token", []string{"kafka"}
		}
	}
}

// byCertificate logs in through the listener that requires a certificate from an authority it
// trusts.
func byCertificate(issue func(*secured) (cert, key string)) login {
	return func(s *secured, cfg *kafka.Config) {
		cfg.Brokers = []string{s.mutual}

		if issue != nil {
			cert, key := issue(s)
			cfg.CertFile, cfg.KeyFile = brokertest.File(s, cert), brokertest.File(s, key)
		}
	}
}

func trusted(s *secured) (cert, key string) { return s.authority.Issue("shop") }

func untrusted(s *secured) (cert, key string) { return brokertest.NewAuthority(s).Issue("shop") }

func logsIn(login login) func(*testing.T, *secured) {
	return func(t *testing.T, s *secured) {
		t.Helper()

		h := s.tls()
		login(s, &h.config.Kafka)

		topic := brokertest.Topic()
		conn := h.open(t, topic)
		received := consume(t, conn, topic, nil)
		must(t, conn.Publisher().Publish(topic, newMessage("k", "1")))
		received.wait(t, 1)

		backlogs, err := conn.Backlogs(t.Context(), []string{topic})
		if err != nil || len(backlogs) != 1 || backlogs[0].Err != nil {
			t.Errorf("got %+v, %v", backlogs, err)
		}

		must(t, conn.Close())
	}
}

// refused checks that the state and the log name the login as the reason, with a
// remedy.
func refused(login login, why, remedy string) func(*testing.T, *secured) {
	return func(t *testing.T, s *secured) {
		t.Helper()

		h := s.tls()
		login(s, &h.config.Kafka)

		namesWhy(t, h.config, why, remedy)
	}
}

const account = "the broker rejects the account: "

// logins returns the tests for a Kafka server that requires a login.
func logins() map[string]func(*testing.T, *secured) {
	tests := map[string]func(*testing.T, *secured){
		"a certificate logs in":                        logsIn(byCertificate(trusted)),
		"no certificate is named":                      refused(byCertificate(nil), account+"TLS authentication failed", "broker.kafka.cert_file"),
		"an unknown certificate authority is reported": refused(byCertificate(untrusted), account+"TLS authentication failed", "that the broker trusts"),
		"a wrong client secret is named":               refused(bySASL("OAUTHBEARER", "hunter2"), account+"authentication failed: the token endpoint answered 401 Unauthorized invalid_client", "the client id"),
		"a token for somebody else is named":           refused(elsewhere, account+"kafka server: SASL Authentication failed", "audience"),
		"a mechanism that is not offered is named": refused(func(s *secured, cfg *kafka.Config) {
			bySASL("SCRAM-SHA-512", "")(s, cfg)
			cfg.Brokers, cfg.TLS, cfg.CAFile = []string{s.plain}, false, ""
		}, account, "broker.kafka.sasl_mechanism"),
		"no login is named": refused(func(*secured, *kafka.Config) {}, "that lack the encryption or login that it requires", ""),
		"no encryption is named": refused(func(s *secured, cfg *kafka.Config) {
			bySASL("PLAIN", "")(s, cfg)
			cfg.TLS, cfg.CAFile = false, ""
		}, "that lack the encryption or login that it requires", ""),
		"a broker with an unknown certificate is reported": refused(func(s *secured, cfg *kafka.Config) {
			bySASL("PLAIN", "")(s, cfg)
			cfg.CAFile = brokertest.File(s, brokertest.NewAuthority(s).Certificate)
		}, "certificate signed by unknown authority", ""),
		"an unavailable token endpoint is not a refusal": refused(func(s *secured, cfg *kafka.Config) {
			bySASL("OAUTHBEARER", "")(s, cfg)
			cfg.TokenURL = "http://127.0.0.1:1/token"
		}, "broker.kafka.token_url: requesting a token", ""),
	}

	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"} {
		tests[mechanism+" logs in"] = logsIn(bySASL(mechanism, ""))

		if mechanism != "OAUTHBEARER" {
			tests["a wrong password for "+mechanism+" is named"] = refused(bySASL(mechanism, "hunter2"), account+"kafka server: SASL Authentication failed", "broker.kafka.password")
		}
	}

	return tests
}

// elsewhere obtains a token meant for another service.
func elsewhere(s *secured, cfg *kafka.Config) {
	bySASL("OAUTHBEARER", "")(s, cfg)
	cfg.Scopes = []string{"elsewhere"}
}
