# JupyterLab and the demo on a CPU. Untried: there was no Docker where this was written.
#
#     docker build --tag panderm --build-arg NB_UID=$(id -u) .
#     docker run --rm --publish 127.0.0.1:8888:8888 panderm     # then open the address that it prints
#     mkdir -p outputs
#     docker run --rm --volume "$PWD/outputs:/home/reader/panderm_utils/outputs" panderm python run_all.py --profile demo
FROM python:3.12-slim

ARG NB_USER=reader
ARG NB_UID=1000
RUN useradd --create-home --uid ${NB_UID} ${NB_USER}
WORKDIR /home/${NB_USER}/panderm_utils

COPY . .
# The index of CPU builds: PyPI's torch would bring gigabytes of CUDA.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt -e . \
    && chown -R ${NB_UID} .

USER ${NB_USER}
ENV JUPYTER_CONFIG_PATH=/home/${NB_USER}/panderm_utils/.jupyter
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser"]
