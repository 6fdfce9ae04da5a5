// Checks an AsyncAPI and an OpenAPI document, and prints what is wrong with each.
//   node check.mjs ASYNCAPI OPENAPI
import { readFileSync } from 'node:fs'
import { Parser } from '@asyncapi/parser'
import spectral from '@stoplight/spectral-core'
import rulesets from '@stoplight/spectral-rulesets'

const [asyncapi, openapi] = process.argv.slice(2).map((name) => readFileSync(name, 'utf8'))

// Severities of Spectral: 0 is an error, 1 a warning.
const problems = (name, diagnostics) =>
  diagnostics
    .filter(({ severity }) => severity <= 1)
    .map(({ severity, code, path, message }) => `${name}: ${severity ? 'warning' : 'error'}: ${path.join('.')}: ${message} (${code})`)

const parsed = await new Parser().parse(asyncapi)

const linter = new spectral.Spectral()
linter.setRuleset({
  extends: [[rulesets.oas, 'recommended']],
  rules: {
    'info-contact': 'off', // the operators of a service know whom to ask
    'operation-description': 'off', // summaries say it
    'operation-tag-defined': 'off', // tags are the first parts of paths
    'oas3-operation-security-defined': 'off', // OpenAPI 3.1 allows roles for every scheme
    'oas3-api-servers': 'off', // the service serves its own document
  },
})

const found = [
  ...problems('asyncapi', parsed.diagnostics),
  ...(parsed.document ? [] : ['asyncapi: error: the document cannot be parsed']),
  ...problems('openapi', await linter.run(openapi)),
]

for (const line of found) console.error(line)
process.exitCode = found.some((line) => line.includes(': error: ')) ? 1 : 0
