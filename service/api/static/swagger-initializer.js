// Starts Swagger UI on /docs, in a file of its own because the pages allow no inline scripts.
"use strict";

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  // Its badge would send the document to a validator on the internet.
  validatorUrl: null,
});
